"""Every task scored on its own gold answers, on nothing, and on another row's, through lm-eval's own task objects.

The quick tests take rows here and there from every data set of the evaluation data; the slow ones take all of them.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_plnd.scoring.answers import tokens
from lm_eval_plnd.scoring.matching import begins_with

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 60

# How much another row's answer may score: numbers, capitals and short answers come twice by chance, Thai answers share
# letters, and each of three answer words is right for a third of XNLI.
FLOORS = {"mgsm": 0.06, "xquad": 0.02, "fact_probing": 0.03, "mzsre": 0.06, "xnli": 0.4}
THAI_FLOOR = 0.17


def local_tasks(data: Path) -> list[str]:
    """The generating tasks whose data is there, with one name for each language or pair."""
    code = {"zh-hans": "zh"}
    found = [f"plnd_mgsm_{path.stem[5:]}" for path in sorted(data.glob("mgsm/mgsm_*.tsv"))]
    found += [f"plnd_xquad_{path.suffixes[0][1:]}" for path in sorted(data.glob("xquad/xquad.*.json"))]
    found += [f"plnd_xnli_{path.stem[10:]}" for path in sorted(data.glob("xnli/xnli_test_*.jsonl"))]
    tuples = sorted(data.glob("fact_probing/tuples/*.jsonl"))
    found += [f"plnd_fact_probing_{code.get(path.stem, path.stem)}" for path in tuples]
    for path in sorted(data.glob("mzsre/en-*.json")):
        found += [f"plnd_mzsre_en_{path.stem[3:]}", f"plnd_mzsre_{path.stem[3:]}_en"]
    return found


def names() -> list[str]:
    """Every generating task of the benchmarks that the evaluation data has."""
    table = re.findall(r"^task: (plnd_(?:mgsm|xquad|xnli|fact_probing|mzsre)_\w+)$", all_files(), re.MULTILINE)
    return sorted(table)


def all_files() -> str:
    """The task files' text."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tasks").rglob("plnd_*.yaml")))


def gold(task, doc: dict) -> list[str]:
    """The answers of a row that are right, as a model would generate them."""
    target = task.doc_to_target(doc)
    return target if isinstance(target, list) else [target]


def check(name: str, data: Path, sample: int | None) -> dict:
    """Score gold answers, no answer and another row's, for some or all rows: what did not score 1, and the means."""
    manager = TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False, metadata={"data_dir": str(data)})
    task = manager.load([name])["tasks"][name]
    docs = list(task.eval_docs)
    step = max(1, len(docs) // sample) if sample else 1
    rows = range(0, len(docs), step)
    failing = [
        (number, answer, scores)
        for number in rows
        for answer in gold(task, docs[number])
        for scores in [task.process_results(docs[number], [answer])]
        if any(score != (metric != "unreadable") for metric, score in scores.items())
    ]
    empty = [
        number
        for number in rows
        for metric, score in task.process_results(docs[number], [" \n"]).items()
        if score != (metric == "unreadable")
    ]
    apart = len(docs) // 3 + 1  # an article, an item, a fact away
    others = [task.process_results(docs[n], [gold(task, docs[(n + apart) % len(docs)])[0]]) for n in rows]
    means = {m: sum(scores[m] for scores in others) / len(others) for m in others[0] if m != "unreadable"}
    return {"task": name, "rows": len(rows), "failing": failing, "empty": empty, "others": means}


def judge(report: dict) -> None:
    """What a report must say."""
    benchmark = re.sub(r"^plnd_|_[a-z]{2}(_[a-z]{2})?$", "", report["task"])
    assert report["failing"] == []
    assert report["empty"] == []
    floor = THAI_FLOOR if report["task"].endswith("_th") and benchmark != "xnli" else FLOORS[benchmark]
    assert max(report["others"].values()) <= floor + (0.1 if report["rows"] <= 2 * SAMPLE else 0)


QUICK = "mgsm_th mgsm_es xquad_zh xquad_ar xnli_zh fact_probing_tr fact_probing_th mzsre_en_zh mzsre_zh_en".split()


@pytest.mark.parametrize("name", [f"plnd_{task}" for task in QUICK])
def test_gold_scores_one_and_nothing_scores_zero(name, shared_data):
    """On rows here and there."""
    if name not in local_tasks(shared_data):
        pytest.skip(f"no data for {name}")
    judge(check(name, shared_data, SAMPLE))


def quick_and_slow(quick: str, every: str) -> list:
    """Some languages on every fortieth row, and all on all rows, slowly."""
    return [
        *((language, 40) for language in quick.split()),
        *(pytest.param(language, 1, marks=pytest.mark.slow) for language in every.split()),
    ]


def rows_of(name: str, data: Path, step: int) -> tuple:
    """A task on the evaluation data, or a skip, and every so many of its rows."""
    if name not in local_tasks(data):
        pytest.skip(f"no data for {name}")
    manager = TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False, metadata={"data_dir": str(data)})
    task = manager.load([name])["tasks"][name]
    return task, list(task.eval_docs)[::step]


@pytest.mark.parametrize(("language", "step"), quick_and_slow("th tr", "ar de en es fr ru sw th tr vi zh"))
def test_xnlis_own_texts_name_no_label(language, step, shared_data):
    """The premise, the hypothesis, a part of it and the prompt again are unreadable; a word behind them is read."""
    task, docs = rows_of(f"plnd_xnli_{language}", shared_data, step)
    for doc in docs:
        if doc["hypothesis"].strip(".").casefold() in doc["choices"]:
            continue  # "Doğru.": whoever says so may as well have answered
        half = doc["hypothesis"][: len(doc["hypothesis"]) * 2 // 3]
        for said in (doc["premise"], doc["hypothesis"], half, task.doc_to_text(doc)):
            assert task.process_results(doc, [said]) == {"acc": 0.0, "unreadable": 1.0}, said
        for index, word in enumerate(doc["choices"]):
            found = task.process_results(doc, [f"“{doc['hypothesis']}” {word}"])
            assert found == {"acc": float(index == doc["label"]), "unreadable": 0.0}


@pytest.mark.parametrize(("language", "step"), quick_and_slow("en tr zh", "ar de en es fr pt ru th tr vi zh"))
def test_the_subject_again_is_no_capital(language, step, shared_data):
    """Who repeats the subject is right only where it is the capital's name; after the subject the capital still is."""
    task, docs = rows_of(f"plnd_fact_probing_{language}", shared_data, step)
    for doc in docs:
        same = any(begins_with(doc["subject"], name, "", language) for name in doc["answers"])
        longer = [
            name for name in doc["answers"] if len(tokens(doc["subject"], language)) > len(tokens(name, language))
        ]
        if len(longer) == len(doc["answers"]) or not same:
            assert task.process_results(doc, [f"{doc['subject']} is in the west"]) == {"acc": 0.0}
        for name in doc["answers"]:
            assert task.process_results(doc, [f"{doc['subject']}: {name}."]) == {"acc": 1.0}


def test_published_rows_of_xcsqa(shared_data, tmp_path):
    """X-CSQA's rows score by their letter and by their words, and not by another choice's."""
    published = shared_data / "xcsqa_schema" / "dev.jsonl"
    if not published.is_file():
        pytest.skip("no xcsqa_schema/dev.jsonl in the evaluation data")
    (tmp_path / "xcsqa" / "en").mkdir(parents=True)
    shutil.copy(published, tmp_path / "xcsqa" / "en" / "dev.jsonl")
    manager = TaskManager(
        include_path=str(ROOT / "tasks"), include_defaults=False, metadata={"data_dir": str(tmp_path)}
    )
    task = manager.load(["plnd_generated_xcsqa_en"])["tasks"]["plnd_generated_xcsqa_en"]
    assert len(task.eval_docs) == 5
    for doc in task.eval_docs:
        for index, (letter, words) in enumerate(zip("ABCDE", doc["choices"], strict=True)):
            for answer in (letter, f"{letter}. {words}", words, f"The answer is {words}."):
                assert task.process_results(doc, [answer]) == {
                    "acc": float(index == doc["label"]),
                    "unreadable": 0.0,
                }


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_row(name, shared_data, record_property):
    """On every row."""
    if name not in local_tasks(shared_data):
        pytest.skip(f"no data for {name}")
    report = check(name, shared_data, None)
    record_property("round_trip", json.dumps(report, ensure_ascii=False))
    print(json.dumps(report, ensure_ascii=False))
    judge(report)
