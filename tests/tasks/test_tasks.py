"""The task files: they are what the table says, lm-eval loads every one, and they run from local files."""

import importlib.util
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_tasks.py"


@pytest.fixture(scope="module")
def make_tasks():
    """The generator, imported from its file."""
    spec = importlib.util.spec_from_file_location("make_tasks", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manager(tasks, small_data) -> TaskManager:
    """Our tasks alone, on the small data."""
    return TaskManager(include_path=str(tasks), include_defaults=False, metadata={"data_dir": str(small_data)})


def names(prefix: str, languages) -> list[str]:
    """A task name for each language."""
    return [f"{prefix}_{language}" for language in languages]


def test_generated_files_are_up_to_date(tasks, make_tasks, tmp_path):
    """The generator writes, byte for byte, the generated files that are there, and no other has its first line."""
    make_tasks.write(tmp_path)
    generated = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    marked = {path for path in tasks.rglob("*.yaml") if path.read_text("utf-8").startswith(make_tasks.HEADER)}
    assert {path.relative_to(tasks): path.read_bytes() for path in marked} == generated


def test_the_english_prompt_is_the_papers(table):
    """Table 8 of arXiv:2402.18815, word for word."""
    assert table["xquad"]["en"]["prompt"] == "{context} Question: {question}"


def test_task_names(manager, table):
    """Names, groups and tags are these and no others."""
    assert manager.all_subtasks == sorted(
        names("plnd_xquad", table["xquad"])
        + names("plnd_cued_xquad", table["xquad"])
        + names("plnd_text", table["text"])
    )
    assert manager.all_groups == ["plnd_cued_xquad", "plnd_text", "plnd_xquad"]
    assert manager.all_tags == ["plnd_mwork", "plnd_understanding"]
    assert set("en de es ru zh vi th ar el tr hi ro".split()) == set(table["xquad"])
    assert set("en de fr es ru zh vi th ar sw".split()) < set(table["text"])


def test_every_task_loads(manager, table):
    """lm-eval builds every task and group from local files; each prompt is the table's, filled in."""
    loaded = manager.load(manager.all_groups)
    assert sorted(loaded["tasks"]) == manager.all_subtasks
    for language, row in table["xquad"].items():
        for prefix, prompt in [("plnd_xquad", row["prompt"]), ("plnd_cued_xquad", row["prompt"] + row["cue"])]:
            task = loaded["tasks"][f"{prefix}_{language}"]
            doc = task.eval_docs[1]
            assert task.doc_to_text(doc) == prompt.format(context="answer 0 answer 1", question=f"{language}-1?")
            assert task.doc_to_target(doc) == ["answer 1"]
            assert task.process_results(doc, ["\nanswer 1\nand more"]) == {"exact_match": 1.0, "f1": 1.0}
    for language in table["text"]:
        task = loaded["tasks"][f"plnd_text_{language}"]
        assert [task.doc_to_target(doc) for doc in task.eval_docs] == [f"{language} 2", f"{language} 3"]


def test_globs_find_each_task_once(manager, table):
    """`plnd_xquad_*` and `plnd_text_*` name tasks and no group, which lm-eval would refuse as duplicates."""
    assert sorted(manager.match_tasks(["plnd_xquad_*"])) == sorted(names("plnd_xquad", table["xquad"]))
    assert sorted(manager.match_tasks(["plnd_text_*"])) == sorted(names("plnd_text", table["text"]))


def test_few_shot_examples_are_other_questions(manager):
    """A shot is another question with its answer, and the prompt ends with the question that is asked."""
    task = manager.load(["plnd_cued_xquad_de"])["tasks"]["plnd_cued_xquad_de"]
    task.set_fewshot_seed(0)
    assert task.fewshot_context(task.eval_docs[0], num_fewshot=1) == (
        "answer 0 answer 1 Frage: de-1? Antwort: answer 1\n\nanswer 0 answer 1 Frage: de-0? Antwort:"
    )


def test_chat_templates_get_the_whole_prompt_as_one_message(manager):
    """With `--apply_chat_template` the user's message is the prompt."""
    task = manager.load(["plnd_xquad_zh"])["tasks"]["plnd_xquad_zh"]
    messages = task.fewshot_context(
        task.eval_docs[0], num_fewshot=0, apply_chat_template=True, chat_template=lambda messages, **_: messages
    )
    assert messages == [{"role": "user", "content": "answer 0 answer 1 问题：zh-0?"}]


def test_a_document_that_looks_like_a_list_stays_text(tasks, tmp_path):
    """lm-eval evaluates a target that renders to "[...]"; a column's name is exempt."""
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "zh.txt").write_text("[1]\n[2]\n", encoding="utf-8")
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"data_dir": str(tmp_path)})
    task = manager.load(["plnd_text_zh"])["tasks"]["plnd_text_zh"]
    assert task.doc_to_target(task.eval_docs[0]) == "[2]"


def evaluate(model: str, tasks: list[str], manager: TaskManager, limit: int | None = None, **model_args) -> dict:
    """What lm-eval's `hf` model scores on the CPU in float32."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32", **model_args},
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        gen_kwargs={"max_gen_toks": 8},
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
    )


@pytest.fixture
def one_thread():
    """Small models run fastest on one thread, all the more where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_groups_run_and_are_means_over_languages(polyglot, manager, table):
    """A group's metrics are the plain means of its tasks'."""
    results = evaluate(polyglot, ["plnd_text", "plnd_cued_xquad"], manager, limit=1)["results"]
    for group, languages, metric in [
        ("plnd_text", table["text"], "bits_per_byte,none"),
        ("plnd_cued_xquad", table["xquad"], "f1,none"),
    ]:
        scores = [results[task][metric] for task in names(group, languages)]
        assert results[group][metric] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.usefixtures("one_thread")
def test_runs_on_the_evaluation_data(polyglot, tasks, shared_data):
    """`plnd_xquad_zh` and `plnd_text_zh` run end to end on real rows."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"data_dir": str(shared_data)})
    output = evaluate(polyglot, ["plnd_xquad_zh", "plnd_text_zh"], manager, limit=2)
    scores = output["results"]["plnd_xquad_zh"]
    assert 0 <= scores["exact_match,none"] <= scores["f1,none"] <= 1
    assert 1 < output["results"]["plnd_text_zh"]["bits_per_byte,none"] < 4
    assert output["n-samples"]["plnd_xquad_zh"] == {"original": 1190, "effective": 2}
    assert output["n-samples"]["plnd_text_zh"] == {"original": 500, "effective": 2}


def nats(model: torch.nn.Module, ids: list[int], bos: int, window: int) -> float:
    """Negative log-likelihood of `ids`, token by token, as lm-eval's rolling windows define it.

    Windows of `window` tokens follow one another. The first sees only the beginning of sequence before it, the others
    one token of the one before, and the last, if it is shorter, as many more as fit.
    """
    total = 0.0
    for start in range(0, len(ids), window):
        end = min(start + window, len(ids))
        begin = max(end - window - 1, -1) if start else -1
        for position in range(start, end):
            context = ([bos] if begin < 0 else [ids[begin]]) + ids[begin + 1 : position]
            logits = model(torch.tensor([context])).logits[0, -1]
            total -= torch.log_softmax(logits.double(), -1)[ids[position]].item()
    return total


@torch.no_grad()
@pytest.mark.usefixtures("one_thread")
def test_bits_per_byte_is_exact(polyglot, tasks, tmp_path):
    """All bits of all documents over all their UTF-8 bytes, also of documents longer than the model's context."""
    documents = ["Ein Satz.", "很久很久以前，有一座山。", " Straße – 12 €\n", " ".join(map(str, range(1990, 2020)))]
    (tmp_path / "corpora").mkdir()
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (tmp_path / "corpora" / "de.jsonl").write_text(lines, encoding="utf-8")
    metadata = {"data_dir": str(tmp_path), "text_documents": "all"}
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata=metadata)
    results = evaluate(polyglot, ["plnd_text_de"], manager, max_length=16)["results"]["plnd_text_de"]

    model = AutoModelForCausalLM.from_pretrained(polyglot, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(polyglot)
    encoded = [tokenizer(document).input_ids for document in documents]
    assert [tokenizer.decode(ids) for ids in encoded] == documents and max(map(len, encoded)) > 2 * 16
    size = sum(len(document.encode("utf-8")) for document in documents)
    bits = sum(nats(model, ids, tokenizer.bos_token_id, window=16) for ids in encoded) / math.log(2)
    assert results["bits_per_byte,none"] == pytest.approx(bits / size, rel=1e-5)
    assert results["byte_perplexity,none"] == pytest.approx(2 ** (bits / size), rel=1e-5)


@pytest.mark.slow
def test_lm_eval_validates_every_task(tasks, manager):
    """`lm_eval validate` accepts every name, beside lm-eval's own tasks, of which none has one of our names."""
    every = manager.all_subtasks + manager.all_groups
    command = [sys.executable, "-m", "lm_eval", "validate", "--include_path", str(tasks), "--tasks", ",".join(every)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "All tasks found and valid" in run.stdout, run.stderr
    assert not set(manager.all_tasks) & set(TaskManager().all_tasks)
