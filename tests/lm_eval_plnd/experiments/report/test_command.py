"""The report of an experiment: complete, escaped, self-contained, the same for the same files."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from browser import needs_browser, rendered
from handmade import MODEL, make_neurons
from lm_eval_plnd.experiments.report.command import make_page
from lm_eval_plnd.experiments.report.note import write_note
from lm_eval_plnd.experiments.results import COLUMNS, read_results
from lm_eval_plnd.experiments.tables import Shown, write_tables
from plnd.commands.main import main
from plnd.errors import PLNDError
from plnd.io.files import write_csv
from plnd.neurons.neuron_set import NeuronSet
from plnd.statistics import bootstrap_interval, paired_p_value

NASTY = """zh.<script src=http://x.example/>alert("a" & 'b')</script>"""
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
SETTINGS = """
model: {pretrained: some/model, dtype: float32, batch_size: 4}
languages: [en, zh]
corpus: "/home/somebody/corpora/{language}.jsonl"
rule: {fraction: 0.01}
regions: {under: 8, gen: 2}
tasks:
  text: {task: "plnd_text_{language}", limit: 20}
  xnli: {task: "plnd_xnli_{language}", num_fewshot: 2, metadata: {data_dir: data}}
experiments: {table1: text, table2: xnli}
"""
BYTES = 2 * [10.0, 40.0, 20.0, 30.0]
BITS = {"original": 2 * [1.0, 1.5, 2.0, 1.25], "zh.specific.under": 2 * [1.5, 2.5, 2.25, 1.75]}
CORRECT = {"original": 2 * [1.0, 1.0, 0.0, 1.0], "zh.specific.under": 2 * [0.0, 1.0, 0.0, 0.0]}
UNDER = "Chinese, language-specific, understanding blocks"
RANDOM = "Chinese, language-specific: as many random neurons, draw 7"


class Page(HTMLParser):
    """What a browser would see: texts, tags with their attributes, and the tables' rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.values = "", []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        """Keeps it."""
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)
        if tag == "data":
            self.values.append(dict(attributes)["value"])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        """Closes the last one."""
        assert self.open.pop() == tag

    def handle_data(self, text):
        """Adds to the text, and to the cell that is open."""
        if "style" in self.open:
            return
        self.text += text
        if "th" in self.open or "td" in self.open:
            self.rows[-1][-1] += text


def row(item: str, setting: str, language: str, metric: str, value: float, **more) -> list:
    """A line of results.csv about Chinese neurons, or about none."""
    original = setting == "original"
    found = dict.fromkeys(COLUMNS, "") | {"item": item, "setting": setting, "metric": metric, "value": repr(value)}
    found |= {"neurons": "none"} if original else {"neurons": "specific", "language": "zh", "mask_sha256": "ab" * 32}
    found |= {
        "deactivated": 0 if original else 1492,
        "share": 0.0 if original else 0.00951,
        "sample": 0,
        "documents": 8,
    }
    found |= {"task": f"plnd_{item}_{language}", "task_language": language, **more}
    return list(found.values())


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small experiment by hand: the original, one set, one control with a nasty name; two items."""
    folder = tmp_path / "an experiment"
    (folder / "samples").mkdir(parents=True)
    rows = []
    for setting in ("original", "zh.specific.under", NASTY):
        samples = {}
        bits, correct = BITS.get(setting), CORRECT.get(setting)
        region = {"region": "under"} if setting == "zh.specific.under" else {}
        control = {"control": "random", "seed": 7} if setting == NASTY else {}
        for language in ("en", "zh"):
            value = 1.23456 if bits is None else float(np.average(bits, weights=BYTES))
            rows.append(row("text", setting, language, "bits_per_byte", value, **region, **control))
            samples[f"plnd_text_{language}"] = {"bits_per_byte": bits, "bytes": BYTES}
        value, stderr = (0.625, "") if correct is None else (float(np.mean(correct)), "0.23217")
        rows.append(row("xnli", setting, "zh", "acc", value, stderr=stderr, **region, **control))
        samples["plnd_xnli_zh"] = {"acc": correct}
        if setting in BITS:
            (folder / "samples" / f"{setting}.json").write_text(json.dumps(samples))
    write_csv(folder / "results.csv", COLUMNS, rows)
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "environment.json").write_text(json.dumps({"plnd": "0.1.0", "torch": "2.99.0"}))
    return folder


def bare(folder: Path) -> Path:
    """The same without values document by document, and so without statistics, which take most of the time."""
    shutil.rmtree(folder / "samples")
    return folder


def test_every_number_is_in_the_page(folder):
    """Each value, error and share of results.csv stands in full in the page, and the counts and names in its tables."""
    page = Page(make_page(folder))
    for found in read_results(folder):
        assert repr(found.value) in page.values and repr(found.share) in page.values
        assert found.stderr != found.stderr or repr(found.stderr) in page.values
        rows = [cells for cells in page.rows if cells[0] == found.setting]
        assert any(found.mask_sha256 in cells for cells in rows) or found.original
        assert f"{found.deactivated:,}" in rows[-2] or found.original
    assert "2.99.0" in page.text and "fraction: 0.01" in page.text


def test_statistics_stand_beside_the_score(folder):
    """A task's table has score, error, interval, change, p-value and, beside them, bits per byte of its language."""
    page = Page(make_page(folder))
    low, high = bootstrap_interval(CORRECT["zh.specific.under"])
    p_value = paired_p_value(CORRECT["zh.specific.under"], CORRECT["original"])
    header = "switched off,accuracy,change,its 95 % interval,p,95 % interval,standard error"
    header += ",bits per byte, Chinese,their change,neurons off,of all,documents"
    difference = np.subtract(CORRECT["zh.specific.under"], CORRECT["original"])
    less, more = (f"{x:+.3f}".replace("-", "−") for x in bootstrap_interval(difference))
    place = next(n for n, cells in enumerate(page.rows) if ",".join(cells) == header)
    original, changed, nasty = page.rows[place + 1 : place + 4]
    assert original[:5] == ["nothing switched off", "0.750", "–", "–", "–"]
    assert original[6:] == ["0.232", "1.475", "–", "0", "0.000 %", "8"]
    assert changed == [
        *(UNDER, "0.250", "−0.500", f"{less} to {more}", f"{p_value:.3f}", f"{low:.3f} to {high:.3f}", "0.232"),
        *("2.125", "+0.650", "1,492", "0.951 %", "8"),
    ]
    assert nasty[:7] == [RANDOM, "0.625", "−0.125", "–", "–", "–", "–"]  # no document by document values


def test_bits_per_byte_are_weighted_by_bytes(folder):
    """Their interval surrounds the weighted mean, and the test compares documents by their bytes."""
    page = Page(make_page(folder))
    weights = np.array(BYTES) / np.mean(BYTES)
    values, before = np.array(BITS["zh.specific.under"]), np.array(BITS["original"])
    low, high = bootstrap_interval(2.125 + weights * (values - 2.125))
    p_value = paired_p_value(weights * values, weights * before)
    header = "switched off,bits per byte,change,its 95 % interval,p,95 % interval,standard error,neurons off,of all"
    cells = page.rows[page.rows.index([*header.split(","), "documents"]) + 2]
    spread = weights * (values - before)
    less, more = bootstrap_interval(0.65 + weights * (values - before - 0.65))
    assert np.isclose(spread.mean(), 0.65) and less < 0.65 < more
    assert cells[1:3] == ["2.125", "+0.650"]
    assert np.allclose([float(end) for end in cells[3].split(" to ")], [less, more], atol=1.01e-3)
    assert cells[4:7] == [f"{p_value:.3f}", f"{low:.3f} to {high:.3f}", "–"]
    assert low < 2.125 < high


def test_findings_are_the_numbers_in_words(folder):
    """Mean changes in the own language, in others and with random neurons, how many are worse, and the largest."""
    page = make_page(folder)
    found = [" ".join(text.split()) for text in re.findall(r'<p class="finding">(.*?)</p>', page, re.S)]
    bits, _ = found[0], found[1]
    assert bits.startswith("Mean change of bits per byte (less is better): +0.650 in the neurons&#39; own language")
    assert "(worse in 1 of 1 comparisons, 1 of them with p &lt; 0.05, not corrected for 1 tests)" in bits
    random = 1.23456 - 1.475
    assert f"{random:+.3f}".replace("-", "−") + " with as many random neurons (worse in 0 of 2 comparisons)" in bits
    assert found[1].startswith(f"Largest loss in the own language: {UNDER}, +0.650 to 2.125 over 8 documents, 95 % ")
    assert "Only 8 documents a task: intervals are rough" in page


def test_few_documents_have_no_p_value(folder):
    """Where not even the most extreme signs could be below 0.05, none is shown, and it is said why."""
    text = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(text.replace(",8\n", ",4\n"))
    for path in (folder / "samples").iterdir():
        samples = json.loads(path.read_text())
        halves = {task: {name: values[:4] for name, values in of.items()} for task, of in samples.items()}
        path.write_text(json.dumps(halves))
    page = make_page(folder)
    assert "Only 4 documents a task: no p-value of this test can be below 0.12" in page
    places = [n for n, cells in enumerate(Page(page).rows) if "its 95 % interval" in cells]
    rows = Page(page).rows
    assert places and all(rows[place + 2][rows[place].index("p")] == "–" for place in places)


def test_nothing_to_see_is_said(folder):
    """Where every score is 0, and where none differs from the original's."""
    bare(folder)
    text = (folder / "results.csv").read_text().replace("0.75,", "0.0,").replace("0.25,", "0.0,")
    (folder / "results.csv").write_text(text.replace("0.625,", "0.0,"))
    page = make_page(folder)
    before, said, _ = page.partition("Every score is 0, the original&#39;s too")
    assert said and before.count("<details") == before.count("</details")  # in sight, not in what is folded
    (folder / "results.csv").write_text(text.replace("acc,0.0,", "acc,0.5,").replace("0.625,", "0.5,"))
    assert "No score differs from the original&#39;s." in make_page(folder)
    header = ("item", "metric", "neurons", "english", "delta")
    write_csv(folder / "table2.csv", header, [("xnli", "acc", 5, 0.0, 0.0), ("text", "bits", 5, 1.0, 0.5)])
    page = make_page(folder)
    assert "xnli: every score and every change is 0" in page and "text: every score" not in page


def test_regions_and_settings_are_in_words(folder):
    """A legend with the settings' own numbers; a row says what was off, and its name in files on hovering."""
    bare(folder)
    page = make_page(folder)
    assert "the first 8, in which other languages are understood" in page and "the last 2, in which" in page
    assert re.search(rf'title="zh.specific.under"[^>]*>{UNDER}<', page.replace("<wbr>", ""))
    (folder / "settings.yaml").unlink()
    assert "the first, in which other languages" in make_page(folder)


def test_draws_of_random_neurons_are_one_row_of_the_overview(folder):
    """Their mean; each of them is in the table of its task."""
    bare(folder)
    lines = list(csv.reader((folder / "results.csv").read_text().splitlines()))
    second = []
    for line in lines:
        if line[1] == NASTY and line[COLUMNS.index("metric")] == "acc":
            changed = dict(zip(COLUMNS, line, strict=True)) | {"setting": "other", "seed": "8", "value": "0.125"}
            second.append([changed[name] for name in COLUMNS])
    write_csv(folder / "results.csv", COLUMNS, [*lines[1:], *second])
    rows = Page(make_page(folder)).rows
    overview = [cells for cells in rows if cells[0] == RANDOM.removesuffix(", draw 7")]
    assert overview[-1][1] == "−0.375"  # (0.625 + 0.125) / 2 - 0.75
    assert [cells[1] for cells in rows if cells[0] in (RANDOM, RANDOM.replace("7", "8"))][-2:] == ["0.625", "0.125"]


def test_sets_stand_beside_each_other(folder):
    """Of each kind where its neurons are, and which share languages have in common; other models are no error."""
    bare(folder)
    (folder / "neurons").mkdir()
    shared = {"0.down_proj": [1, 5], "1.q_proj": [3]}
    make_neurons(shared).save(folder / "neurons" / "zh.specific.safetensors")
    make_neurons({"0.down_proj": [1], "0.o_proj": [2]}).save(folder / "neurons" / "en.specific.safetensors")
    page = make_page(folder)
    rows = Page(page).rows
    place = rows.index(["neurons of", "all", "0", "1"])
    assert rows[place + 1 : place + 3] == [["English", "2", "2", "0"], ["Chinese", "3", "2", "1"]]
    place = rows.index(["neurons of", "English", "Chinese"])
    assert rows[place + 1 : place + 3] == [["English", "1.000", "0.333"], ["Chinese", "0.500", "1.000"]]
    said = "English has 33.3% of the neurons of Chinese"
    assert f"Most in common: Chinese has 50.0% of the neurons of English; least: {said}." in page
    other = {**MODEL, "widths": {**MODEL["widths"], "0.q_proj": 7}}
    make_neurons(shared, model=other).save(folder / "neurons" / "zh.specific.safetensors")
    assert "language-specific: not of one model" in make_page(folder)


def test_answers_stand_side_by_side(folder):
    """What was asked, what is right, and what was written without and with neurons; as text, whatever it is."""
    bare(folder)
    (folder / "answers").mkdir()
    asked = [{"prompt": "1+1=", "target": "2", "answer": "<b>2</b>\n"}, {"prompt": "2+2=", "target": "4", "answer": ""}]
    (folder / "answers" / "original.json").write_text(json.dumps({"plnd_xnli_zh": asked}))
    off = [asked[1] | {"answer": "五\u202e"}]
    (folder / "answers" / "zh.specific.under.json").write_text(json.dumps({"plnd_xnli_zh": off}))
    rows = Page(make_page(folder)).rows
    place = rows.index(["switched off", "document 1", "document 2"])
    assert rows[place + 1 : place + 5] == [
        ["asked", "…1+1=", "…2+2="],
        ["right", "2", "4"],
        ["nothing switched off", "<b>2</b>↵", "(nothing)"],
        [UNDER, "–", r"五\u202e"],
    ]
    (folder / "answers" / "original.json").write_text('{"plnd_xnli_zh": [{"prompt": 1}]}')
    with pytest.raises(PLNDError, match=r"original\.json: expected \{task: \[\{prompt, target, answer\}\]\}"):
        make_page(folder)


def test_tables_as_scripts_print_them(folder):
    """The wide table of the Markdown beside a CSV comes first, all numbers after it, folded; with the item in words."""
    bare(folder)
    long = [(x, y, 10.0 * a + b) for a, x in enumerate(("off", "on")) for b, y in enumerate(("en", "zh"))]
    wide = Shown("text: bits | byte", ("switched off", "en", "zh"), [("off", "0.0", "1.0"), ("on", "10.0 ±1", "11.0*")])
    write_tables(str(folder / "table1"), ("switched off", "language", "value"), long, [wide])
    write_note(str(folder / "table1"), [], ["scripts/plnd_paper.py", "table1", "--output", str(folder / "table1")])
    page = make_page(folder)
    assert "Table 1: each language without its own neurons" in page and "<h3>text: bits | byte</h3>" in page
    rows = Page(page).rows
    place = rows.index(["switched off", "en", "zh"])
    assert rows[place + 1 : place + 3] == [["off", "0.0", "1.0"], ["on", "10.0 ±1", "11.0*"]]
    assert rows.index(["switched off", "language", "value"]) > place
    assert "<summary>all numbers, table1.csv</summary>" in page


def test_a_picture_that_is_there_twice(folder):
    """Of a drawing and the same as dots, the drawing is in the page."""
    bare(folder)
    (folder / "figure3.png").write_bytes(PICTURE)
    (folder / "figure3.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    pictures = [attributes["src"] for tag, attributes in Page(make_page(folder)).tags if tag == "img"]
    assert [source.partition(";")[0] for source in pictures] == ["data:image/svg+xml"]


def test_page_asks_nobody(folder):
    """No script; pictures are inside the page; nothing is loaded from anywhere; even the names cannot break out."""
    (folder / "figure3.png").write_bytes(PICTURE)
    (folder / "figure10.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>')
    html = make_page(folder)
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names and "iframe" not in names and "object" not in names
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in html and "@import" not in html
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert pictures[0] == "data:image/png;base64," + base64.b64encode(PICTURE).decode()  # Figure 3 before Figure 10
    assert pictures[1].startswith("data:image/svg+xml;base64,")
    assert NASTY in page.text and "<script" not in html


@pytest.mark.slow
@needs_browser
def test_a_browser_has_nothing_to_say(folder, tmp_path):
    """It shows the page with its picture, and neither its policy nor anything else is on the console."""
    (bare(folder) / "figure3.png").write_bytes(PICTURE)
    (folder / "report.html").write_text(make_page(folder), encoding="utf-8")
    shown, console = rendered(folder / "report.html", tmp_path / "profile")
    assert console == [] and UNDER in shown.replace("<wbr>", "")


def test_links_lead_somewhere(folder):
    """Every section has a link at the top."""
    tags = Page(make_page(folder)).tags
    links = [attributes["href"][1:] for tag, attributes in tags if tag == "a"]
    assert links and links == [attributes["id"] for tag, attributes in tags if tag == "section"]


def test_tables_of_the_scripts(folder):
    """A table with one number for each pair becomes a grid for each panel; any other stays as it is."""
    curves = [
        (p, c, b, p_ + c_ + b)
        for p, p_ in (("x", 0.5), ("y", 1.5))
        for c, c_ in (("en", 10), ("zh", 20))
        for b in (0, 1)
    ]
    write_csv(folder / "figure3.csv", ("panel", "curve", "block", "value"), curves)
    sizes = [("en", "words", 1200, "", 0.25), ("zh", "words", 34, 2, float("nan"))]
    write_csv(folder / "table7.csv", ("language", "unit", "documents", "missing", "share"), sizes)
    page = make_page(folder)
    rows = Page(page).rows
    grid = rows.index(["block", "en", "zh"])
    assert rows[grid + 1 : grid + 3] == [["0", "10.500", "20.500"], ["1", "11.500", "21.500"]]
    plain = rows.index(["language", "unit", "documents", "missing", "share"])
    assert rows[plain + 1 : plain + 3] == [["en", "words", "1,200", "–", "0.250"], ["zh", "words", "34", "2", "–"]]
    assert '<th scope="col" class="number">missing</th>' in page and '<th scope="col">language</th>' in page


def test_changes_keep_their_sign(folder):
    """In a column with a plus sign, numbers with a sign are shown as changes, those without as they are."""
    header = ("trained on", "documents", "method", "en", "zh")
    rows = [("nothing", "", "", 1.0, 1.5), ("zh", 1000, "lora", "+0.01", "-0.0001")]
    rows += [("en", 400, "full", "+0.0", "-0.5"), ("de", 1, "full", "-0.25", "+1e-05")]
    write_csv(folder / "changes.csv", header, rows)
    rows = Page(make_page(folder)).rows
    place = rows.index([*header])
    assert rows[place + 1] == ["nothing", "–", "–", "1.000", "1.500"]
    assert rows[place + 2] == ["zh", "1,000", "lora", "+0.010", "0.000"]
    assert rows[place + 3] == ["en", "400", "full", "0.000", "−0.500"]
    assert rows[place + 4] == ["de", "1", "full", "−0.250", "0.000"]


def test_notes_say_how_things_were_made(folder, tmp_path, monkeypatch):
    """The page has the command of every note, with paths as they are seen from above the folder, in figures' order."""
    monkeypatch.chdir(tmp_path)
    (folder / "below").mkdir()
    for item, output in (("figure10", "an experiment/figure10"), ("figure3", "an experiment/below/figure3")):
        words = ["/home/me/scripts/plnd_paper.py", item, "an experiment", "/data/other.csv", f"--output={output}"]
        write_note(output, ["an experiment", "/data/other.csv"], [*words, "--model", "/home/me/model"])
    lines = [line for line in Page(make_page(folder)).text.splitlines() if "scripts/" in line]
    command = "python scripts/plnd_paper.py {0} 'an experiment' other.csv --output 'an experiment/{1}{0}' --model model"
    assert lines == [command.format("figure3", "below/"), command.format("figure10", "")]
    assert "home" not in (folder / "figure10.made.json").read_text()


def test_artifacts_and_commands(folder):
    """Artifacts with their digests; commands with the folder's name quoted, and each setting's model arguments."""
    widths = {"0.down_proj": 8}
    model = {"name": "some/model", "revision": None, "model_type": "llama", "blocks": 1, "widths": widths}
    corpus = {"source": "zh.jsonl", "sha256": "cd" * 32, "documents": 5, "tokens": 6789, "max_length": 9, "skipped": {}}
    metadata = {
        "format": "plnd.neurons",
        "version": 1,
        "plnd": "0.1.0",
        "language": "zh",
        "model": model,
        "corpus": corpus,
    }
    metadata |= {"method": {"name": "plnd", "projections": ["down_proj"]}, "dtype": "float32", "scores_sha256": ""}
    metadata |= {"rule": {"name": "fraction", "value": 0.01}}
    (folder / "neurons").mkdir()
    neurons = NeuronSet({"0.down_proj": np.array([1, 5], np.int32)}, {"0.down_proj": np.ones(2, np.float32)}, metadata)
    neurons.save(folder / "neurons" / "zh.specific.safetensors")
    (folder / "commands.sh").write_text("echo <done>\n")
    (folder / "tuned").mkdir()
    (folder / "tuned" / "adapter_config.json").write_text("{}")
    (folder / "tuned" / "adapter_model.safetensors").write_text("weights, which are no artifact")
    page = Page(make_page(folder))
    (cells,) = [cells for cells in page.rows if cells[0] == "neurons/zh.specific.safetensors"]
    assert cells[1:7] == ["neurons", "zh", "2", "fraction 0.01", "5", "6,789"]
    assert cells[7:] == ["cd" * 32, neurons.digest]
    assert "plnd experiment 'an experiment'/settings.yaml --output 'an experiment'-again" in page.text
    assert "plnd report 'an experiment'" in page.text and "echo <done>" in page.text
    (cells,) = [cells for cells in page.rows if cells[0] == "zh.specific.under" and len(cells) == 2]
    mask = "mask=an experiment/neurons/zh.specific.safetensors,regions=under,under=8,gen=2"
    assert cells[1] == f"--model plnd --model_args '{mask},pretrained=some/model,dtype=float32'"
    command = '--tasks plnd_xnli_en,plnd_xnli_zh --num_fewshot 2 --metadata \'{"data_dir": "data"}\''
    assert f'lm_eval $MODEL --batch_size 4 --include_path "$(plnd tasks)" {command}' in page.text
    assert "corpus: '{language}.jsonl'" in page.text and "somebody" not in page.text  # of this machine, nobody's else


def test_same_folder_same_bytes(folder, capsys):
    """The command writes the page into the folder, and does not read it when it makes it again."""
    assert main(["report", str(folder)]) == 0
    first = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == first
    assert str(folder / "report.html") in capsys.readouterr().out
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.csv", "a,b\n1,2\n", "columns a,b; expected item,setting,neurons"),
        ("results.csv", "", "columns none; expected item"),
        ("results.csv", b"\xff\xfe", "not UTF-8"),
        ("results.csv", ",".join(COLUMNS) + "\n", "no results in it yet"),
        ("results.csv", ",".join(COLUMNS) + "\n1,2\n", "line 2 has 2 values, expected 17"),
        ("samples/original.json", "{", "not JSON"),
        ("samples/original.json", '{"task": [1]}', "expected {task: {metric: [value per document]}}"),
        ("settings.yaml", "model: 3", "languages: missing"),
        ("environment.json", "[]", "a JSON list, expected an object"),
        ("table9.csv", "a,b\n1\n", "row 2 has 1 values, expected 2"),
        ("neurons.safetensors", "x", "not a whole safetensors file"),
        ("figure3.made.json", '{"command": 3}', "not a note of one of the scripts; run it again"),
        ("figure3.made.json", '{"command": [{"file": ""}]}', "not a note of one of the scripts; run it again"),
    ],
)
def test_damaged_files_are_one_line(folder, capsys, name, content, message):
    """Exit status 2, one line with the file and what is wrong, and no page."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"plnd report: {folder / name}: ") and message in error and error.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_a_bad_value_names_its_line(folder):
    """A number that is none, and a row that stands there twice."""
    lines = list(csv.reader((folder / "results.csv").read_text().splitlines()))
    bad = [*lines[2]]
    bad[COLUMNS.index("value")] = "high"
    write_csv(folder / "results.csv", COLUMNS, [lines[1], bad])
    with pytest.raises(PLNDError, match="line 3: value is 'high', expected a number"):
        make_page(folder)
    write_csv(folder / "results.csv", COLUMNS, [lines[1], lines[1]])
    with pytest.raises(PLNDError, match="original, plnd_text_en, bits_per_byte stands there twice"):
        make_page(folder)


def test_no_folder_and_an_empty_one(tmp_path, capsys):
    """One line, exit status 2."""
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "absent: no such folder; expected a folder that `plnd experiment` wrote" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("nothing for a report")
    assert main(["report", str(tmp_path)]) == 2
    assert "nothing to report there" in capsys.readouterr().err
