"""The command line: the whole path from text to tables, and every bad input in one line with exit status 2."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import (
    CodeGenConfig,
    CodeGenForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
)

from handmade import MODEL, make_neurons, make_scores, neurons_metadata, scores_metadata
from pictures import curves, drawn, ticks
from plnd import NeuronSet, PLNDError, Regions, Scores, contrast, detect, lens, load_model, read_documents, stability
from plnd.commands.main import COMMANDS, find_commands, main, make_parser
from plnd.detection.config import DetectConfig
from plnd.logit_lens.config import LensConfig
from plnd.logit_lens.lens import load_lens
from plnd.models.families import FAMILIES
from plnd.models.loading import load_tokenizer

SHAPE = dict(vocab_size=260, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6)


def save_tokenizer(folder: Path) -> None:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_only).save_pretrained(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A folder with a random two-block Llama and a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2, max_position_embeddings=128)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, model) -> Path:
    """A working folder with corpora of two languages and artifacts of the model."""
    monkeypatch.chdir(tmp_path)
    for language, letters in (("en", "abcdefgh "), ("zh", "语言模型的神经元")):
        rows = [{"text": letters[n:] + letters * (2 + n)} for n in range(6)]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


DETECT = "detect --model {model} --corpus zh.jsonl --language zh --output zh.scores --min-length 8 --max-length 64"


def plnd(command: str, **values) -> int:
    """Runs one command line, split at spaces; returns its status, also where argparse exits."""
    try:
        return main(command.format(**values).split())
    except SystemExit as stop:
        return int(stop.code or 0)


def probe(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter."""
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, timeout=120
    )


# the whole path


def test_the_whole_path(here, model, capsys):
    """detect, select, combine, show, verify, overlap, layers: each one's output is the next one's input."""
    for language in ("en", "zh"):
        assert plnd(DETECT.replace("zh", language) + " --qk exact --batch-size 3", model=model) == 0
        assert f"{language}.scores: 6 documents, " in capsys.readouterr().out
        assert plnd(f"select {language}.scores --fraction 0.2 --output {language}.safetensors") == 0
    assert not list(here.glob("*.checkpoint")) and not list(here.glob("*.partial"))
    assert plnd("combine zh.safetensors --minus en.safetensors --output zh_specific.safetensors") == 0
    out, err = capsys.readouterr()
    digest = hashlib.sha256((here / "zh_specific.safetensors").read_bytes()).hexdigest()
    assert out.splitlines()[-1].startswith("zh_specific.safetensors: ") and out.endswith(f"sha256 {digest}\n")

    zh, en, own = (NeuronSet.load(f"{name}.safetensors") for name in ("zh", "en", "zh_specific"))
    assert own == zh - en and 0 < len(own) < len(zh)

    assert plnd("show zh_specific.safetensors --json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["neurons"], facts["sha256"], facts["language"]) == (len(own), digest, "zh")
    assert facts["counts"] == own.counts() and facts["operands"] == own.metadata["operands"]

    assert plnd(f"verify zh_specific.safetensors --model {model}") == 0
    assert plnd(f"verify zh.scores --model {model}") == 0
    assert capsys.readouterr().out == "".join(
        f"{name}: whole, and fits {model}\n" for name in ("zh_specific.safetensors", "zh.scores")
    )

    with drawn() as figures:
        assert plnd("overlap en.safetensors zh.safetensors --csv overlap.csv --plot overlap.png") == 0
    rows = list(csv.DictReader((here / "overlap.csv").open()))
    assert len(rows) == 3 * 4
    (value,) = (r["overlap"] for r in rows if (r["structure"], r["x"], r["y"]) == ("all", "en", "zh"))
    assert float(value) == len(en & zh) / len(zh)
    assert (here / "overlap.png").read_bytes().startswith(b"\x89PNG")
    (whole,) = (axis for axis in figures[0].axes if axis.get_title() == "all neurons")
    assert whole.get_images()[0].get_array()[0, 1] == float(value) and ticks(whole) == ["English", "Chinese"]

    with drawn() as figures:
        assert plnd("layers zh.safetensors en.safetensors --csv layers.csv --plot layers.svg") == 0
    rows = list(csv.DictReader((here / "layers.csv").open()))
    assert sum(int(row["neurons"]) for row in rows if row["set"] == "zh") == len(zh)
    assert "<svg" in (here / "layers.svg").read_text()
    for name, neurons in (("Chinese", zh), ("English", en)):
        assert sum(sum(y) for (_, curve), y in curves(figures[0]).items() if curve == name) == len(neurons)


def test_detect_is_the_python_call(here, model):
    """The command line writes what `plnd.detect` and `save` write, byte for byte."""
    assert plnd(DETECT + " --max-documents 4 --batch-size 2 --qk off --dtype float64 --device cpu", model=model) == 0
    config = DetectConfig(language="zh", qk="off", max_documents=4, max_length=64, min_length=8, batch_size=2)
    scores = detect(
        load_model(str(model), dtype="float64", device="cpu"),
        read_documents("zh.jsonl"),
        config,
        tokenizer=load_tokenizer(str(model)),
        source="zh.jsonl",
    )
    assert scores.digest == hashlib.sha256((here / "zh.scores").read_bytes()).hexdigest()


def test_detect_finds_the_tokenizer_of_the_model(here, model):
    """From Python too, texts need no tokenizer where the model was loaded from a folder that has one."""
    loaded, config = load_model(str(model), device="cpu"), DetectConfig(min_length=8, max_length=64)
    given = detect(loaded, read_documents("zh.jsonl"), config, tokenizer=load_tokenizer(str(model)))
    assert detect(loaded, read_documents("zh.jsonl"), config).digest == given.digest


def test_an_unlisted_family_is_one_warning(here, model, capsys):
    """A model that is taken as Llama says so once, in a line without a place in the code, and is detected."""
    (here / "cwm").mkdir()
    for file in model.iterdir():
        text = file.read_bytes().replace(b'"llama"', b'"cwm"').replace(b"LlamaFor", b"CwmFor")
        (here / "cwm" / file.name).write_bytes(text)
    assert plnd(DETECT.replace("{model}", "cwm") + " --qk off") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "not in the table" in line]
    assert warned == ["warning: model family 'cwm' is not in the table; its modules match Llama's layout"]
    assert Scores.load("zh.scores").metadata["model"]["model_type"] == "cwm"


def test_shards_and_their_merge(here, model, capsys):
    """`--shard` writes a part and says what it reads; `merge` writes what one run writes, and refuses half of it."""
    detect = DETECT + " --qk off --batch-size 2"
    assert plnd(detect.replace("zh.scores", "one"), model=model) == 0
    one = capsys.readouterr().out
    for number in (2, 1):
        assert plnd(detect.replace("zh.scores", f"zh.{number}.part") + f" --shard {number}/2", model=model) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"zh.{number}.part: shard {number}/2, {(4, 2)[number - 1]} documents, ")
        assert f"shard {number}/2: reads the whole corpus and scores its share\n" in err
    assert plnd("merge zh.2.part --output zh.scores") == 2 and not Path("zh.scores").exists()
    assert "shard 1/2: no part of it" in capsys.readouterr().err
    assert plnd("select zh.2.part --top-k 3 --output zh.safetensors") == 2
    wording = "plnd select: zh.2.part: a part of scores (shard 2/2); merge first: plnd merge PART… --output F\n"
    assert capsys.readouterr().err == wording
    assert plnd("merge zh.2.part zh.1.part --output zh.2.part") == 2
    assert "is read as well (parts)" in capsys.readouterr().err
    assert plnd("merge zh.2.part zh.1.part --output zh.scores") == 0
    assert capsys.readouterr().out == one.replace("one:", "zh.scores:")
    assert Path("zh.scores").read_bytes() == Path("one").read_bytes()
    assert plnd(detect + " --shard 3/2", model=model) == 2
    assert "shard '3/2': expected I/N with I from 1 to N" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_of_a_streamed_data_set(here, model, capsys):
    """Of a data set with three files each of two shards reads its own, says so, and the merge is that of one run."""
    import datasets

    texts = [json.loads(line)["text"] for line in (here / "zh.jsonl").read_text(encoding="utf-8").splitlines()]
    (here / "rows").mkdir()
    for number in range(3):
        rows = datasets.Dataset.from_dict({"text": texts[number::3]})
        rows.to_parquet(here / "rows" / f"train-0000{number}-of-00003.parquet")
    detect = DETECT.replace("zh.jsonl", "rows:") + " --qk off --batch-size 2"
    assert plnd(detect.replace("zh.scores", "one"), model=model) == 0
    capsys.readouterr()
    for number, read in ((1, 2), (2, 1)):
        assert plnd(detect.replace("zh.scores", f"zh.{number}.part") + f" --shard {number}/2", model=model) == 0
        assert f"shard {number}/2: reads {read} of 3 files of rows:\n" in capsys.readouterr().err
    assert plnd("merge zh.1.part zh.2.part --output zh.scores") == 0
    assert Path("zh.scores").read_bytes() == Path("one").read_bytes()
    detect += " --max-documents 4 --shard 1/2"
    assert plnd(detect, model=model) == 0
    assert "shard 1/2: reads the whole corpus and scores its share\n" in capsys.readouterr().err


def test_text_field_and_text_files(here, model):
    """Another field, and lines of text, are the same corpus."""
    rows = [json.loads(line) for line in (here / "zh.jsonl").read_text(encoding="utf-8").splitlines()]
    (here / "other.jsonl").write_text("".join(json.dumps({"body": row["text"]}) + "\n" for row in rows))
    (here / "lines.txt").write_text("\n".join(row["text"] for row in rows), encoding="utf-8")
    digests = set()
    for corpus in ("zh.jsonl", "other.jsonl --text-field body", "lines.txt"):
        assert plnd(DETECT.replace("zh.jsonl", corpus) + " --qk off", model=model) == 0
        digests.add(Scores.load("zh.scores").metadata["corpus"]["sha256"])
    assert len(digests) == 1


def test_corpora_in_other_forms(here, model):
    """A compressed table, a pipe, a nested field, a folder and two files of half the rows are the same corpus."""
    lines = (here / "zh.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    texts = [json.loads(line)["text"] for line in lines]
    with gzip.open(here / "ZH.CSV.GZ", "wt", newline="") as stream:
        csv.writer(stream).writerows([("id", "text"), *enumerate(texts)])
    (here / "nested.jsonl").write_text("".join(json.dumps({"a": {"b": text}}) + "\n" for text in texts))
    (here / "halves").mkdir()
    for name, half in (("1", lines[:2]), ("2", lines[2:])):
        (here / "halves" / f"{name}.jsonl").write_text("".join(half))
    os.mkfifo(here / "pipe")
    writer = threading.Thread(target=lambda: (here / "pipe").write_text("".join(lines)))
    writer.start()
    expected = (
        "zh.jsonl",
        "pipe",
        "ZH.CSV.GZ",
        "nested.jsonl --text-field a.b",
        "halves",
        "halves/1.jsonl halves/2.jsonl",
    )
    corpora = []
    for corpus in expected:
        assert plnd(DETECT.replace("zh.jsonl", corpus) + " --qk off", model=model) == 0
        corpora.append(Scores.load("zh.scores").metadata["corpus"])
    writer.join()
    assert len({corpus["sha256"] for corpus in corpora}) == 1
    assert [corpus["source"] for corpus in corpora] == [
        "zh.jsonl", "pipe", "ZH.CSV.GZ", "nested.jsonl", "halves", "halves/1.jsonl, halves/2.jsonl",
    ]  # fmt: skip


def test_interrupted_before_the_first_checkpoint(model, here, capsys):
    """Where nothing was kept yet, nothing is promised."""

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = register_module_forward_pre_hook(interrupt)
    try:
        assert plnd(DETECT, model=model) == 130
    finally:
        handle.remove()
    assert capsys.readouterr().err.splitlines()[-1] == "plnd detect: interrupted"
    assert not (here / "zh.scores").exists()


def test_detect_resumes(here, model, capsys, monkeypatch):
    """An interrupted run returns 130 and leaves a checkpoint; --resume ends it with the same file."""
    monkeypatch.setattr("plnd.detection.run.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr("plnd.detection.run.WINDOW", 2)
    command = DETECT + " --batch-size 1"
    assert plnd(command + " --resume", model=model) == 0
    assert "nothing to resume (zh.scores.checkpoint is not there): starting with the first" in capsys.readouterr().err
    expected = (here / "zh.scores").read_bytes()
    (here / "zh.scores").unlink()
    capsys.readouterr()

    def interrupt(*_):
        if (here / "zh.scores.checkpoint").exists():
            raise KeyboardInterrupt

    handle = register_module_forward_pre_hook(interrupt)
    try:
        assert plnd(command, model=model) == 130
    finally:
        handle.remove()
    assert capsys.readouterr().err.splitlines()[-1] == "plnd detect: interrupted; --resume continues"
    assert (here / "zh.scores.checkpoint").exists() and not (here / "zh.scores").exists()
    assert plnd(command + " --resume", model=model) == 0
    assert (here / "zh.scores").read_bytes() == expected
    assert not (here / "zh.scores.checkpoint").exists()


# select and combine, on artifacts made by hand

ZH = make_neurons({"0.q_proj": [0, 1, 2], "1.up_proj": [3, 4], "1.down_proj": [5]})
EN = make_neurons({"0.q_proj": [1], "1.up_proj": [4, 6]}, language="en")
RU = make_neurons({"0.q_proj": [1, 2]}, language="ru")


@pytest.fixture
def sets(tmp_path, monkeypatch) -> Path:
    """A working folder with three hand-made sets and scores."""
    monkeypatch.chdir(tmp_path)
    for name, neurons in (("zh", ZH), ("en", EN), ("ru", RU)):
        neurons.save(f"{name}.safetensors")
    widths = MODEL["widths"].items()
    make_scores({name: np.arange(width, 0, -1.0)[None] for name, width in widths}).save("zh.scores")
    rising = {name: np.arange(1.0, width + 1) for name, width in widths}
    for number, language in enumerate(("en", "ja", "de")):
        corpus = {**scores_metadata()["corpus"], "sha256": str(number + 2) * 64}
        documents = np.array([1, 1.25, 1.5])[:, None] ** (number + 1)
        importance = {name: values**documents for name, values in rising.items()}
        make_scores(importance, language=language, corpus=corpus).save(f"{language}.scores")
    make_scores({name: values[None] for name, values in rising.items()}, language="ru", version=1).save("old.scores")
    return tmp_path


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("", lambda: ZH),
        ("--minus en.safetensors", lambda: ZH - EN),
        ("--minus en.safetensors ru.safetensors", lambda: ZH - EN - RU),
        ("--union en.safetensors --minus ru.safetensors", lambda: (ZH | EN) - RU),
        ("--minus ru.safetensors --union en.safetensors", lambda: (ZH - RU) | EN),
        ("--intersect en.safetensors ru.safetensors", lambda: ZH & EN & RU),
        ("--minus-shared en.safetensors ru.safetensors", lambda: ZH.minus_shared([EN, RU])),
        ("--minus en.safetensors --minus ru.safetensors", lambda: ZH - EN - RU),
        ("--top 2", lambda: ZH.top(2)),
        ("--whole --top 2", lambda: ZH.top(2).whole()),
        ("--projections up_proj,down_proj", lambda: ZH.restrict(projections=["up_proj", "down_proj"])),
        ("--regions under --under 1", lambda: ZH.restrict(regions=Regions(("under",), 1, 0))),
        (
            "--minus en.safetensors --projections up_proj,down_proj --regions gen --gen 1 --top 1",
            lambda: (ZH - EN).restrict(projections=["up_proj", "down_proj"], regions=Regions(("gen",), 0, 1)).top(1),
        ),
    ],
)
def test_combine_is_the_algebra(sets, arguments, expected):
    """Operations apply from left to right, then the restriction, --top and --whole; as the Python calls."""
    assert plnd(f"combine zh.safetensors {arguments} --output out") == 0
    assert NeuronSet.load("out") == expected()
    assert NeuronSet.load("out").digest == expected().digest


@pytest.mark.parametrize(
    "arguments, keywords",
    [
        ("--epsilon 2.5", {"epsilon": 2.5}),
        ("--epsilon-for 0.25 --projections paper", {"epsilon_for": 0.25, "projections": "paper"}),
        ("--top-k 3", {"top_k": 3}),
        ("--fraction 0.25", {"fraction": 0.25}),
        ("--top-k 2 --projections q_proj,up_proj", {"top_k": 2, "projections": ["q_proj", "up_proj"]}),
        ("--top-k 2 --regions solve_ffn --under 1 --gen 0", {"top_k": 2, "regions": Regions(("solve_ffn",), 1, 0)}),
    ],
)
def test_select_is_the_rule(sets, arguments, keywords):
    """Each flag is the argument of `Scores.select`."""
    assert plnd(f"select zh.scores {arguments} --output out") == 0
    assert NeuronSet.load("out").digest == Scores.load("zh.scores").select(**keywords).digest


def test_select_says_the_epsilon_of_a_share(sets, capsys):
    """One line: the epsilon, with which --epsilon gives the same set, and what was counted how often."""
    assert plnd("select zh.scores --epsilon-for 0.25 --output out") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    epsilon, share = NeuronSet.load("out").metadata["rule"]["value"], NeuronSet.load("out").metadata["rule"]["share"]
    assert line.startswith(f"epsilon {epsilon!r} keeps {len(NeuronSet.load('out'))} of ") and f"{share:.3%}" in line
    assert line.endswith("each feed-forward neuron 3 times: gate_proj, up_proj, down_proj)")
    assert plnd(f"select zh.scores --epsilon {epsilon!r} --output again") == 0
    assert NeuronSet.load("again") == NeuronSet.load("out")


@pytest.mark.parametrize(
    "command, own, others, keywords",
    [
        ("de.scores --against en.scores", ["de"], ["en"], {"share": 0.2, "times": 1}),
        ("zh.scores --against en.scores --count 3 --times 1", ["zh"], ["en"], {"count": 3, "times": 1}),
        (
            "de.scores ja.scores --against en.scores zh.scores --count 9 --times 1",
            ["de", "ja"],
            ["en", "zh"],
            {"count": 9, "times": 1},
        ),
        ("de.scores --against en.scores --error-rate 0.8 --times 1", ["de"], ["en"], {"error_rate": 0.8, "times": 1}),
        (
            "de.scores --against en.scores --share 0.1 --error-rate 0.4 --times 1.05 --projections q_proj,down_proj"
            " --regions under,solve_ffn --under 1 --gen 0",
            ["de"],
            ["en"],
            {
                "share": 0.1,
                "error_rate": 0.4,
                "times": 1.05,
                "projections": ["q_proj", "down_proj"],
                "regions": Regions(("under", "solve_ffn"), 1, 0),
            },
        ),
    ],
)
def test_select_against_is_the_contrast(sets, capsys, command, own, others, keywords):
    """Each flag is the argument of `plnd.contrast`; the output says what was written, and `show` whom it is against."""
    flags = "" if command.count("--") > 1 else " --share 0.2 --times 1"
    assert plnd(f"select {command}{flags} --output out") == 0
    assert capsys.readouterr().out.startswith("out: ")
    own, others = ([Scores.load(f"{x}.scores") for x in languages] for languages in (own, others))
    found = NeuronSet.load("out")
    assert found.digest == contrast(own, others, **keywords).digest and len(found)
    assert plnd("show out") == plnd("show out --json") == 0
    shown = capsys.readouterr().out
    rule = found.metadata.rule
    assert f"rule      name=contrast, asked={rule['asked']}, chosen_from=" in shown or rule["asked"] is None
    for language in others:
        assert f"          against: language={language.metadata.language}, sha256={language.digest}\n" in shown
    for language in own[1:]:
        assert f"          with: language={language.metadata.language}, sha256={language.digest}\n" in shown


def test_select_against_by_default(sets, capsys):
    """With --against alone it is the default of `plnd.contrast`: here a share that is less than a neuron."""
    assert plnd("select de.scores --against en.scores --output out") == 2
    with pytest.raises(PLNDError) as caught:
        contrast(Scores.load("de.scores"), Scores.load("en.scores"))
    assert capsys.readouterr().err == f"plnd select: {caught.value}\n" and str(caught.value).startswith("share=0.001: ")


def test_fewer_than_asked_for_is_said(sets, capsys):
    """A set that is smaller than what was asked for is a result, with a line that says so."""
    assert plnd("select zh.scores --against en.scores --count 50 --times 1 --output out") == 0
    kept = len(NeuronSet.load("out"))
    line = f"note: {kept} neurons instead of 50: no others are 1 times as important here as in any other language\n"
    assert line in capsys.readouterr().err
    assert plnd("select de.scores --against en.scores --count 50 --error-rate 0.4 --times 1 --output out") == 0
    assert " any other language and pass at an error rate of 0.4\n" in capsys.readouterr().err
    assert plnd("select zh.scores --against en.scores --count 2 --times 1 --output out") == 0
    assert " instead of " not in capsys.readouterr().err


def test_how_stable_a_set_is(sets, capsys):
    """What Python finds with the same rule, and what to do where it is little."""
    rule = {"count": 50, "times": 1}
    share = stability(Scores.load("zh.scores"), Scores.load("en.scores"), **rule)
    assert plnd("select zh.scores --against en.scores --count 50 --times 1 --output out") == 0
    out, err = capsys.readouterr()
    assert f"stability {share:.2f}: " in out and ("detect on more documents" in err) == (share < 0.8)


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("select zh.scores --fraction 0.1 --output zh.scores", "scores"),
        ("select zh.scores --against en.scores --output ./en.scores", "against"),
        ("combine zh.safetensors --minus en.safetensors --output en.safetensors", "operations"),
        ("overlap zh.safetensors en.safetensors --csv zh.safetensors", "files"),
        ("detect --model m --corpus zh.scores --language zh --output zh.scores", "corpus"),
    ],
)
def test_what_is_read_is_not_written(sets, capsys, command, argument):
    """Of every command, before anything is written."""
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert plnd(command) == 2
    found = capsys.readouterr().err
    assert f"is read as well ({argument}), and would be lost; choose another name\n" in found
    assert before == {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("probe made --output made/config.json", "model"),
        ("convert old.txt --model made --output made/model.safetensors", "model"),
        ("report made --output made/results.csv", "folder"),
        ("lens --model m --corpus made --language zh --identifier script --csv made/en.csv", "corpus"),
    ],
)
def test_what_lies_in_a_folder_that_is_read_is_not_written(sets, capsys, command, argument):
    """But a page or an artifact there is."""
    file = Path(command.split()[-1])
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    assert plnd(command) == 2
    assert f"is in a folder that is read ({argument}), and would be lost" in capsys.readouterr().err
    assert file.read_text() == "mine"
    shutil.copy("zh.scores", file)
    for allowed in (command, command.replace(str(file), "made/report.html"), command.replace(str(file), "made/new")):
        assert plnd(allowed) == 2 and "would be lost" not in capsys.readouterr().err  # past it, to what is not there


def test_what_steers_a_terminal_is_shown(tmp_path, capsys):
    """Metadata of an artifact forges no line and moves no cursor: in words, as JSON, and in an error."""
    hostile = "zh\nneurons   9 of 9\x1b[2J\x9b\u202e"
    neurons = make_neurons({"1.down_proj": (0, 1)}, language=hostile)
    neurons.save(tmp_path / "n")
    assert plnd(f"show {tmp_path}/n") == plnd(f"show {tmp_path}/n --json") == 0
    shown, _ = capsys.readouterr()
    assert not set("\x1b\x9b\u202e") & set(shown) and "neurons   9 of 9" not in shown.splitlines()
    (found,) = [line for line in shown.splitlines() if line.startswith("language")]
    assert found.startswith("language  zh↵neurons")
    assert json.loads(shown[shown.index("{\n") :])["language"] == hostile
    (tmp_path / "bad\x1b[2J").write_text("no artifact")
    assert main(["show", str(tmp_path / "bad\x1b[2J")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_empty_results_are_written_with_a_warning(sets, capsys):
    """A set without neurons is a result, and one that is worth a word."""
    assert plnd("combine zh.safetensors --minus zh.safetensors --output out") == 0
    assert capsys.readouterr().err == "warning: the set is empty\n" and len(NeuronSet.load("out")) == 0
    assert plnd("layers out --csv out.csv") == plnd("overlap out zh.safetensors") == plnd("show out") == 0
    capsys.readouterr()
    assert plnd("select zh.scores --epsilon 1e9 --output out") == 0
    assert "warning: the set is empty: no neuron meets epsilon=1e+09; it" in capsys.readouterr().err
    assert plnd("export --model anything --mask out --output without") == 2
    line = "plnd export: no neuron is left in the set, so there is nothing to zero: choose more of them\n"
    assert capsys.readouterr().err == line


def test_show_of_what_nobody_named(sets, capsys):
    """Scores made in Python may be of a corpus and a language without names."""
    corpus = {**scores_metadata()["corpus"], "source": None}
    make_neurons({"0.q_proj": [1]}, language=None, corpus=corpus).save("python.safetensors")
    assert plnd("show python.safetensors") == 0
    out = capsys.readouterr().out
    assert "language  not named" in out and "corpus    not named: 3 documents" in out


def test_show_in_words(sets, capsys):
    """`show` says where an artifact is from and what was done to it."""
    plnd("combine zh.safetensors --minus en.safetensors --regions gen --gen 1 --top 2 --output out")
    capsys.readouterr()
    assert plnd("show out") == 0
    out = capsys.readouterr().out
    for part in (
        "plnd.neurons version 2, sha256 ",
        "model     made/by-hand (llama, 2 blocks), dtype float32",
        "language  zh",
        "corpus    zh.jsonl: 3 documents, 120 tokens, 1 skipped (shorter than 32 tokens)",
        "rule      name=top_k, value=2",
        f"minus: language=en, neurons=3, sha256={EN.digest}",
        "restrict: regions=(gen=1, names=gen, under=0)",
        "top: n=2",
        "neurons   2 of 88 neurons (2.273%)",
    ):
        assert part in out
    assert plnd("show zh.scores") == 0
    out = capsys.readouterr().out
    assert "plnd.scores version 2" in out
    assert "numbers   of 88 neurons: min, mean, worst_rank, mean_log, std_log\n" in out
    assert plnd("show old.scores") == 0
    out = capsys.readouterr().out
    assert "plnd.scores version 1" in out
    assert "numbers   of 88 neurons: min, mean, worst_rank; no logs, which select --against reads\n" in out


LENS = "lens --model {model} --corpus zh.jsonl en.jsonl --language zh en --max-length 9 --max-documents 4 --device cpu"


def test_lens_is_the_python_call(here, model, capsys):
    """Both languages are printed, written and drawn as `plnd.lens` counts them."""
    command = LENS + " --identifier script --top-k 3 --batch-size 3 --dtype float64 --csv lens.csv --plot lens.png"
    with drawn() as figures:
        assert plnd(command, model=model) == 0
    loaded, tokenizer = load_model(str(model), dtype="float64", device="cpu"), load_tokenizer(str(model))
    found = load_lens("lens.csv")
    assert [one.language for one in found] == ["zh", "en"]
    for one in found:
        documents = read_documents(f"{one.language}.jsonl")
        config = LensConfig(top_k=3, max_documents=4, max_length=9)
        same = lens(loaded, tokenizer, documents, one.language, config, identifier="script")
        assert one.positions == same.positions == 36 and one.blocks == ("input", "0", "1")
        for label, tokens in zip(same.decoded, same.tokens.T, strict=True):
            assert np.array_equal(one.tokens[:, one.decoded.index(label)], tokens)
    out = capsys.readouterr().out
    assert "zh: 4 documents, 36 tokens, top 3 decoded" in out and "en (by script), %" in out
    latin = found[0].shares()["Latin script"]
    assert f"{100 * latin[0]:.1f}" in next(line for line in out.splitlines() if line.split()[:1] == ["input"])
    shown = curves(figures[0])
    assert {title for title, _ in shown} == {"zh (by script)", "en (by script)"}
    assert shown["zh (by script)", "Latin script"] == pytest.approx(100 * latin)


def test_lens_by_both(here, model, capsys):
    """The two identifiers count the same tokens."""
    pytest.importorskip("gcld3")
    assert plnd(LENS + " --identifier both --csv lens.csv", model=model) == 0
    found = load_lens("lens.csv")
    assert [(x.language, x.identifier) for x in found] == [(x, y) for x in ("zh", "en") for y in ("cld3", "script")]
    assert all((one.tokens.sum(1) == 36 * 10).all() for one in found)
    assert "zh (by cld3), %" in capsys.readouterr().out


def test_families_and_tasks(capsys):
    """The table is printed with a line a family, and other types with a reason; the tasks' folder holds tasks."""
    assert plnd("families") == 0
    out = capsys.readouterr().out
    assert all(any(line.startswith(f"{family} ") for line in out.splitlines()) for family in FAMILIES)
    assert "  a recurrent state, and no attention: falcon_mamba, mamba, mamba2, rwkv, xlstm\n" in out
    assert plnd("tasks") == 0
    folder = Path(capsys.readouterr().out.rstrip("\n"))
    assert list(folder.rglob("*.yaml"))


# bad input


@pytest.fixture
def bad(sets, model) -> Path:
    """The hand-made sets beside files that are wrong in one way each."""
    data = (sets / "zh.safetensors").read_bytes()
    (sets / "truncated").write_bytes(data[:-7])
    (sets / "random").write_bytes(bytes(range(256)))
    (sets / "folder").mkdir()
    (sets / "empty.txt").write_text(" \n\n")
    (sets / "good.txt").write_text("some text that is long enough for a document\n")
    (sets / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (sets / "broken.jsonl").write_text("{")
    tensors = {"0.q_proj": np.array([0, 6], np.int32), "0.q_proj.importance": np.ones(2, np.float32)}
    (sets / "range").write_bytes(save(tensors, metadata={"plnd": json.dumps(neurons_metadata())}))
    (sets / "newer").write_bytes(save(tensors, metadata={"plnd": json.dumps(neurons_metadata(version=3))}))
    make_neurons({}, model={**MODEL, "model_type": "gpt2"}).save("gpt2.safetensors")
    torch.manual_seed(0)
    codegen = CodeGenConfig(vocab_size=260, n_embd=24, n_layer=1, n_head=4, n_inner=40, rotary_dim=4)
    CodeGenForCausalLM(codegen).save_pretrained(sets / "codegen")
    ViTConfig().save_pretrained(sets / "vit")
    save_tokenizer(sets / "codegen")
    (sets / "broken_model").mkdir()
    (sets / "broken_model" / "config.json").write_bytes((model / "config.json").read_bytes())
    (sets / "broken_model" / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    save_tokenizer(sets / "broken_model")
    return sets


DETECT_GOOD = "detect --model {model} --corpus good.txt --language xx --output out"
"""What `{detect}` stands for below; the last one of a repeated flag counts."""
LENS_GOOD = "lens --model {model} --corpus good.txt --language xx --identifier script"
"""What `{lens}` stands for."""
BAD_INPUT = [
    # artifacts
    ("show nothing", "nothing: no such file, expected a plnd artifact"),
    ("show folder", "folder: is a folder, expected a plnd artifact"),
    ("show truncated", "truncated: not a whole safetensors file ("),
    ("show random", "random: not a whole safetensors file ("),
    ("show newer", "newer: format version 3, but this plnd reads up to 2: upgrade plnd"),
    ("show range", "range: 0.q_proj holds 6, out of range for 6 neurons"),
    ("select nothing --top-k 1 --output out", "nothing: no such file"),
    ("select zh.safetensors --top-k 1 --output out", "zh.safetensors: holds 'plnd.neurons', expected scores"),
    ("combine zh.scores --output out", "zh.scores: holds 'plnd.scores', expected neurons"),
    ("combine zh.safetensors --minus truncated --output out", "truncated: not a whole safetensors file"),
    ("layers zh.safetensors random", "random: not a whole safetensors file ("),
    ("overlap zh.safetensors newer", "newer: format version 3"),
    # models
    (
        "verify zh.safetensors --model {model}",
        "zh.safetensors: made for a model whose 0.down_proj has 8 neurons, but this one's has 40: detect again on this"
        " model, or use the model that they were made for",
    ),
    (
        "verify gpt2.safetensors --model {model}",
        "gpt2.safetensors: made for gpt2 with 2 blocks (made/by-hand), but the model is llama with 2 blocks (",
    ),
    ("verify zh.safetensors --model codegen", "model family 'codegen' is not in the families table ("),
    ("verify zh.safetensors --model vit", "vit: not a causal language model (Unrecognized configuration class"),
    ("verify zh.safetensors --model nowhere", "nowhere: cannot be loaded ("),
    ("verify zh.safetensors --model folder", "folder: cannot be loaded ("),
    (
        "combine zh.safetensors --minus gpt2.safetensors --output out",
        "gpt2.safetensors: made for gpt2 with 2 blocks (made/by-hand), but the model is llama with 2 blocks (made/by-",
    ),
    ("overlap zh.safetensors gpt2.safetensors", "gpt2: made for gpt2 with 2 blocks"),
    ("{detect} --model codegen", "model family 'codegen' is not in the families table (`plnd families` prints it)"),
    ("{detect} --model nowhere", "nowhere: cannot be loaded ("),
    ("{detect} --dtype int8", "unknown dtype 'int8': expected one of auto, float64, float32, bfloat16, float16"),
    # corpora
    ("{detect} --corpus empty.txt", "empty.txt: no document in it"),
    ("{detect} --corpus nothing.txt", "nothing.txt: no such file"),
    ("{detect} --corpus good.txt --format xml", "argument --format: invalid choice"),
    ("{detect} --corpus good.txt nothing.txt", "nothing.txt: no such file"),
    ("{detect} --corpus folder", "folder: a folder without .txt"),
    ("{detect} --corpus latin.txt", "latin.txt, line 1: not UTF-8"),
    ("{detect} --corpus broken.jsonl", "broken.jsonl, line 1: not JSON, expected one JSON object a line"),
    # settings
    ("{detect} --batch-size 0", "batch_size=0:"),
    ("{detect} --min-length 99 --max-length 9", "min_length=99 is above max_length=9: no document could be scored"),
    (
        "select zh.scores --top-k 1 --regions over --under 1 --gen 1 --output out",
        "unknown region 'over': expected some of under, solve, solve_attn, solve_ffn, gen",
    ),
    ("select zh.scores --top-k 1 --regions solve_atn --output out", "unknown region 'solve_atn': expected"),
    ("select zh.scores --top-k 1 --regions under --output out", "regions under need under=N"),
    ("select zh.scores --top-k 1 --regions under --under 3 --output out", "under=3 and gen=0 overlap: the"),
    ("select zh.scores --top-k 1 --under 3 --output out", "--under and --gen say how large the regions are"),
    ("select zh.scores --top-k 1 --projections q_proj,q --output out", "unknown projection 'q': expected"),
    ("select zh.scores --top-k 0 --output out", "top_k=0: expected a whole number above 0"),
    ("select zh.scores --fraction 2 --output out", "fraction=2.0: expected a number above 0 and at most 1"),
    ("select zh.scores --epsilon nan --output out", "epsilon=nan: expected a number above 0"),
    ("select zh.scores --epsilon-for 0 --output out", "epsilon_for=0.0: expected a number above 0 and at most 1"),
    ("select zh.scores --output out", "no rule: name the scores of other languages with --against for what is special"),
    ("select zh.scores en.scores --top-k 1 --output out", "2 scores files: several are a group of languages, which is"),
    ("select zh.scores --count 3 --output out", "--count is a rule over languages: name the scores of the others with"),
    ("select zh.scores --top-k 1 --error-rate 0.1 --output out", "--error-rate is a rule over languages: name the"),
    (
        "select zh.scores --epsilon 1 --output out --against en.scores",
        "--against compares languages: its rules are",
    ),
    (
        "select zh.scores --top-rate 0.1 --count 3 --output out --against en.scores",
        "--top-rate is LAPE's rule and --count that of contrast: give one of them",
    ),
    (
        "select zh.scores en.scores --fraction 0.1 --output out --against ru.scores",
        "--fraction is LAPE's rule, which has no groups of languages: give one scores file first",
    ),
    (
        "select zh.scores --fraction 0.1 --output out --against en.scores",
        "these scores were detected with method=plnd, and entropy is taken of activations: detect with --method lape"
        " (or activation), or compare by contrast (--count or --share instead)",
    ),
    ("select zh.scores --count 0 --output out --against en.scores", "count=0: expected a whole number above 0"),
    ("select zh.scores --share 2 --output out --against en.scores", "share=2.0: expected a number above 0 and at most"),
    (
        "select zh.scores --error-rate 5 --output out --against en.scores",
        "error_rate=5.0: expected a number above 0",
    ),
    ("select zh.scores --count 1 --output out --against zh.scores", "zh is among the others too: compare a language"),
    (
        "select zh.scores --count 1 --output out --against old.scores",
        "the scores of ru are of format version 1,",
    ),
    ("select zh.scores --count 1 --output out --against nothing", "nothing: no such file, expected a plnd artifact"),
    ("select zh.scores --count 1 --output out --against zh.safetensors", "zh.safetensors: holds 'plnd.neurons', expec"),
    ("select zh.scores --count 1 --projections q --output out --against en.scores", "unknown projection 'q': expected"),
    ("combine zh.safetensors --top 0 --output out", "--top 0: expected 1 or more"),
    ("overlap zh.safetensors ./zh.safetensors", "two of the files have the same name"),
    # lens
    ("{lens} --language xx yy", "1 corpora and 2 languages: expected one for each"),
    ("{lens} --corpus good.txt good.txt --language xx xx", "languages xx, xx: expected each once"),
    ("{lens} --top-k 0", "top_k=0: expected 1 or more"),
    ("{lens} --corpus empty.txt", "empty.txt: no document in it"),
    ("{lens} --model codegen", "model family 'codegen' is not in the families table ("),
    ("{lens} --csv missing/out.csv", "missing/out.csv: cannot be written ("),
    ("{lens} --plot folder", "folder: is a folder, expected the name of a file"),
    # targets
    ("select zh.scores --top-k 1 --output missing/out", "missing/out: cannot be written (No such file"),
    ("select zh.scores --top-k 1 --output folder", "folder: is a folder, expected the name of a file"),
    ("select zh.scores --top-k 1 --output /proc/out", "/proc/out: cannot be written ("),
    ("combine zh.safetensors --output /proc/out", "/proc/out: cannot be written ("),
    ("layers zh.safetensors --csv missing/out.csv", "missing/out.csv: cannot be written ("),
    ("overlap zh.safetensors --plot missing/out.png", "missing/out.png: cannot be written ("),
    ("overlap zh.safetensors --plot out.xyz", "out.xyz: plots cannot be written as 'xyz'; use .png, .svg"),
    ("{detect} --output /proc/out", "/proc/out: cannot be"),
    ("{detect} --output missing/out", "missing/out: cannot be"),
]


@pytest.mark.parametrize("command, line", BAD_INPUT, ids=[command for command, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_status_2(bad, model, capsys, command, line):
    """Whatever is wrong: one line on stderr that begins like this, status 2, and nothing written."""
    before = sorted(bad.iterdir())
    command = command.replace("{detect}", DETECT_GOOD).replace("{lens}", LENS_GOOD)
    capsys.readouterr()
    assert plnd(command, model=model) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"plnd {command.split()[0]}: {line}") and len(err.splitlines()) == 1 and err.endswith("\n")
    assert sorted(bad.iterdir()) == before


def test_empty_arguments_are_not_ignored(sets, capsys):
    """An empty shell variable for --regions or --projections is an error, not the whole model."""
    for flag, line in (("--regions", "no region named"), ("--projections", "unknown projection ''")):
        assert main(["select", "zh.scores", "--top-k", "1", "--output", "out", flag, ""]) == 2
        assert capsys.readouterr().err.startswith(f"plnd select: {line}")


def test_weights_that_are_cut_are_refused(bad, capsys):
    """What is found only while the model loads is the last line, whatever progress was shown above it."""
    assert plnd("detect --model broken_model --corpus good.txt --language xx --output out --max-length 64") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("plnd detect: broken_model: cannot be loaded (")
    assert not (bad / "out").exists()


def test_a_corpus_of_short_documents_is_refused(bad, model, capsys):
    """Where every document is too short the last line says how many there were, and there is no artifact."""
    assert plnd(f"{DETECT_GOOD} --max-length 128 --min-length 120", model=model) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "plnd detect: good.txt: no document to score among 1 (1 shorter than 120 tokens, 0 with non-finite importance)"
    )
    assert not (bad / "out").exists()


USAGE = [
    ("", "plnd: the following arguments are required: COMMAND (see plnd --help)"),
    ("nonsense", "plnd: argument COMMAND: invalid choice: 'nonsense'"),
    ("show", "plnd show: the following arguments are required: file (see plnd show --help)"),
    (
        "select zh.scores --against en.scores --count 1 --share 0.1 --output out",
        "plnd select: argument --share: not allowed with argument --count",
    ),
    (
        "select zh.scores --top-k 1 --fraction 1 --output out",
        "plnd select: argument --fraction: not allowed with argument",
    ),
    ("select zh.scores --top-k many --output out", "plnd select: argument --top-k: invalid int value: 'many'"),
    ("detect --batch-size some", "plnd detect: argument --batch-size: invalid int or auto value: 'some'"),
    ("detect --qk nearly", "plnd detect: argument --qk: invalid choice: 'nearly'"),
]


@pytest.mark.parametrize("command, line", USAGE, ids=[command or "nothing" for command, _ in USAGE])
def test_usage_errors_are_one_line_and_status_2(capsys, command, line):
    """A wrong flag prints no page of help, but one line that says where there is one."""
    assert plnd(command) == 2
    out, err = capsys.readouterr()
    assert err.startswith(line) and len(err.splitlines()) == 1 and "--help)" in err and not out


def test_usage_errors_with_line_breaks_are_one_line(capsys):
    """Also where the argument itself has several lines."""
    with pytest.raises(SystemExit):
        main(["families", "one\ntwo"])
    assert len(capsys.readouterr().err.splitlines()) == 1


# as a program

LOADED = """
import json, sys
from plnd.commands.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(list(sys.modules)), file=sys.stderr)
"""
HEAVY = {"torch", "transformers", "numpy", "safetensors", "datasets", "tokenizers", "huggingface_hub", "matplotlib",
         "lm_eval", "peft", "scipy", "tqdm", "pydantic"}  # fmt: skip


def test_help_imports_nothing_heavy():
    """`plnd --help` names every subcommand, and loads neither torch nor any other large package."""
    done = probe(LOADED, "--help")
    assert not HEAVY & set(json.loads(done.stderr))
    for name in ("detect", "select", "combine", "show", "verify", "overlap", "layers", "families", "tasks"):
        assert f"\n    {name} " in done.stdout
    assert done.stdout.index("find the neurons") < done.stdout.index("    detect ") < done.stdout.index("look at them")


def test_the_probe_would_notice():
    """The negative: a subcommand that needs numpy shows in the same probe."""
    modules = json.loads(probe(LOADED, "show", "nothing").stderr.splitlines()[-1])
    assert "numpy" in modules and "torch" not in modules


def test_a_subcommand_loads_no_other_packages_subcommands():
    """`plnd show` imports neither the plug-ins nor what they need; `plnd --help` lists them, and so imports them."""
    quiet = json.loads(probe(LOADED, "show", "nothing").stderr.splitlines()[-1])
    plugins = ("lm_eval_plnd.commands", "lm_eval_plnd.experiments", "yaml")
    assert not [name for name in quiet if name.startswith(plugins)]
    assert "lm_eval_plnd.commands.tasks" in json.loads(probe(LOADED, "--help").stderr)


@pytest.mark.parametrize("name", find_commands())
def test_each_help_has_an_example_that_parses(capsys, name):
    """Every subcommand's --help ends with an example; those of plnd's own command line are valid."""
    assert plnd(f"{name} --help") == 0
    example = capsys.readouterr().out.rpartition("example:\n")[2].strip()
    assert f"plnd {name}" in example
    if name in COMMANDS:
        assert make_parser(COMMANDS).parse_args(example.split()[1:]).command == name


def test_the_order_of_the_help(capsys):
    """The own subcommands in the order of the work, then those of other packages by name."""
    assert list(find_commands())[: len(COMMANDS)] == list(COMMANDS) and next(iter(COMMANDS)) == "detect"
    plugins = list(find_commands())[len(COMMANDS) :]
    assert plugins == sorted(plugins) and "demo" in plugins


def test_program_and_module(sets):
    """`python -m plnd` and the installed program are the same command, with status and streams."""
    for program in ([sys.executable, "-m", "plnd"], [str(Path(sys.executable).with_name("plnd"))]):
        if not Path(program[0]).exists():
            pytest.skip("the project is not installed with its scripts")
        done = subprocess.run([*program, "show", "nothing"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "plnd show: nothing: no such file, expected a plnd artifact\n"
        done = subprocess.run([*program, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout.split()[0]) == (0, "plnd")


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
def test_a_closed_pipe_is_no_error(sets):
    """`plnd show F | head -0` ends quietly."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m plnd show zh.safetensors --json | true"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_plugin_breaks_only_itself(tmp_path):
    """A subcommand of another package that cannot be imported is listed as that, and the others work."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[plnd.commands]\nbroken = no_such_module:Command\n")
    run = "from plnd.commands.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    helped = probe(run, "--help", PYTHONPATH=str(tmp_path), COLUMNS="500")
    assert (
        helped.returncode == 0 and "cannot be loaded from no_such_module:Command (ModuleNotFoundError" in helped.stdout
    )
    assert probe(run, "families", PYTHONPATH=str(tmp_path)).returncode == 0
    failed = probe(run, "broken", PYTHONPATH=str(tmp_path))
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1
    assert failed.stderr.startswith("plnd broken: cannot be loaded from no_such_module:Command (")


def test_a_plugin_that_is_no_subcommand_breaks_only_itself(tmp_path):
    """An entry point that names something else, here a module, is told in one line what was expected of it."""
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[plnd.commands]\nother = json\nshow = json\n")
    run = "from plnd.commands.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    expected = "cannot be loaded from json (expected an object with help, example, add_arguments and run)"
    helped = probe(run, "--help", PYTHONPATH=str(tmp_path), COLUMNS="500")
    assert helped.returncode == 0 and expected in helped.stdout and "print what an artifact holds" in helped.stdout
    failed = probe(run, "other", PYTHONPATH=str(tmp_path))
    assert (failed.returncode, failed.stderr) == (2, f"plnd other: {expected}\n")
