"""The rows of the tasks in `tasks/`: what their YAML files name as `custom_dataset`.

lm-eval calls these functions with a task's metadata, which holds all of `--metadata` and `--model_args`, and with the
YAML's `dataset_kwargs`. `language` comes from the YAML, `data_dir` from the user (`--metadata '{"data_dir": "…"}'`):
with it rows come from files in that folder, without it from the network (`lm_eval_plnd.rows.sources`), in the same
columns. No loading script is run. Entries that are for others are ignored.
"""

import random
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import regex

from lm_eval_plnd.rows.sources import (
    MGSM,
    MPARAREL,
    MPARAREL_CODES,
    MZSRE,
    OR_HUB,
    WIKIPEDIA,
    XCSQA,
    XLSUM_FILES,
    XLSUM_NAMES,
    XNLI,
    XQUAD,
    RowError,
    data_file,
    downloading,
    json_lines,
    last_texts,
    numbered_lines,
    parquet_rows,
    reading,
    text_in,
    text_of,
)
from plnd.errors import CorpusError
from plnd.io import strict_json
from plnd.io.corpus import find_corpus, read_documents

TEXT_DOCUMENTS = 500
SUMMARIES = 500  # as many as arXiv:2402.18815 samples
CANDIDATES = 10
SEED = 0

XNLI_LABELS = ("entailment", "neutral", "contradiction")  # in the order of the hub's class labels


def _features(texts: str, lists: str = "", numbers: str = "") -> datasets.Features:
    """Columns of text, of lists of text and of whole numbers, by their names."""
    return datasets.Features(
        {column: datasets.Value("string") for column in texts.split()}
        | {column: [datasets.Value("string")] for column in lists.split()}
        | {column: datasets.Value("int32") for column in numbers.split()}
    )


PROBLEMS = _features("language question answer")
QUESTIONS = _features("id language context question", lists="answers")
CHOICES = _features("id language question", lists="choices", numbers="label")
ARTICLES = _features("id language title text summary")
PAIRS = _features("language premise hypothesis", lists="choices", numbers="label")
FACTS = _features("id language subject prompt", lists="answers choices", numbers="pattern label")
EDITS = _features("language context question", lists="answers")
TEXTS = _features("text")

_SQUAD = f"SQuAD v1.1 (data, paragraphs, qas, answers): {OR_HUB}"
_MGSM = f"MGSM (question, tab, number on each line): {OR_HUB}"
_XCSQA = f"X-CSQA (id, question with stem and choices, answerKey on each line): {OR_HUB}"
_XLSUM = f"XL-Sum (id, title, text, summary on each line): {OR_HUB}"
_XNLI = f"XNLI (premise, hypothesis, label on each line): {OR_HUB}"
_MPARAREL = f"mParaRel tuples (sub_label, obj_label, sub_uri on each line): {OR_HUB}"
_MZSRE = f"MzsRE (a list of pairs with src and alt): {OR_HUB}"


def mgsm(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """MGSM in one language, 250 problems: the split `test`, with the columns of `PROBLEMS`.

    Args:
        language: one of MGSM's, en de fr es ru zh ja th sw bn te.
        data_dir: folder with `mgsm/mgsm_{language}.tsv` as it is published; None reads `juletxara/mgsm`.
    Raises:
        CorpusError: if the file or the hub cannot be read, or the file is something else.
    """
    if data_dir is None:
        with downloading(MGSM.name):
            hub = MGSM.rows(language, "test")
            rows = [(text_in(row, "question"), str(int(row["answer_number"]))) for row in hub]
    else:
        path = data_file(data_dir, "mgsm", f"mgsm_{language}.tsv")
        rows = []
        for number, line in numbered_lines(path, _MGSM):
            with reading(f"{path}, line {number}", _MGSM):
                question, answer = line.split("\t")
                rows.append((text_in({"question": question}, "question"), text_in({"answer": answer}, "answer")))
    problems = [{"language": language, "question": q, "answer": a} for q, a in rows]
    return datasets.DatasetDict(test=datasets.Dataset.from_list(problems, features=PROBLEMS))


def xquad(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XQuAD in one language, 1190 questions: the split `validation`, with the columns of `QUESTIONS`.

    All text loses the white space around it, so that no prompt ends with a space, and contexts the byte-order marks
    with which some begin.

    Args:
        language: one of XQuAD's, en de es ru zh vi th ar el tr hi ro.
        data_dir: folder with `xquad/xquad.{language}.json` in SQuAD v1.1 format; None reads `google/xquad`.
    Raises:
        CorpusError: if the file or the hub cannot be read, or the file is something else.
    """
    if data_dir is None:
        with downloading(XQUAD.name):
            hub = XQUAD.rows(language, "validation")
            rows = [_question(language, row, row["context"], row["answers"]["text"]) for row in hub]
    else:
        rows = _squad(language, data_file(data_dir, "xquad", f"xquad.{language}.json"))
    return datasets.DatasetDict(validation=datasets.Dataset.from_list(rows, features=QUESTIONS))


def xcsqa(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """X-CSQA in one language, 1000 questions with five choices: the split `validation`, with the columns of `CHOICES`.

    The labels of the test split are hidden, so the labelled development split is the one that is read.

    Args:
        language: one of X-CSQA's, en zh de es fr it ja nl pl pt ru ar vi hi sw ur.
        data_dir: folder with `xcsqa/{language}/dev.jsonl` as it is published (there Japanese is `jap`, here `ja`); None
            reads `INK-USC/xcsr`.
    Raises:
        CorpusError: if the file or the hub cannot be read, or the file is something else.
    """
    if data_dir is None:
        with downloading(XCSQA.name):
            hub = XCSQA.rows(language, "validation")
            rows = [
                _choice(language, row, row["question"]["choices"]["label"], row["question"]["choices"]["text"])
                for row in hub
            ]
    else:
        path = data_file(data_dir, "xcsqa", language, "dev.jsonl")
        rows = []
        for place, row in json_lines(path, _XCSQA):
            with reading(place, _XCSQA):
                choices = row["question"]["choices"]
                rows.append(_choice(language, row, [c["label"] for c in choices], [c["text"] for c in choices]))
    return datasets.DatasetDict(validation=datasets.Dataset.from_list(rows, features=CHOICES))


def xlsum(language: str, data_dir: str | None = None, rows: int | str = SUMMARIES, **_: Any) -> datasets.DatasetDict:
    """XL-Sum's test articles in one language: the split `test`, with the columns of `ARTICLES`.

    Args:
        language: one of `lm_eval_plnd.rows.sources.XLSUM_NAMES`.
        data_dir: folder with `xlsum/{name}_test.jsonl` as it is published (`english_test.jsonl`,
            `chinese_simplified_test.jsonl`, …); None reads the hub's own conversion of `csebuetnlp/xlsum` to parquet.
        rows: how many articles to draw, always the same ones in the same order; or "all", in the data's order.
    Raises:
        CorpusError: if the file or the hub cannot be read, or the file is something else.
    """
    name = XLSUM_NAMES[language]
    columns = ("id", "title", "text", "summary")
    if data_dir is None:
        source = XLSUM_FILES.format(name=name)
        with downloading(source):
            read = parquet_rows(source, columns)
    else:
        read = []
        for place, row in json_lines(data_file(data_dir, "xlsum", f"{name}_test.jsonl"), _XLSUM):
            with reading(place, _XLSUM):
                read.append({column: row[column] for column in columns})
    if rows != "all":
        read = random.Random(SEED).sample(read, min(int(rows), len(read)))
    with reading(name, _XLSUM):
        articles = [
            {"language": language} | {column: text_in(row, column, blank=column != "summary") for column in columns}
            for row in read
        ]
    return datasets.DatasetDict(test=datasets.Dataset.from_list(articles, features=ARTICLES))


def xnli(language: str, answers: Mapping[str, str], data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XNLI in one language: the splits `validation` (2490 pairs) and `test` (5010), with the columns of `PAIRS`.

    Args:
        language: one of XNLI's, ar bg de el en es fr hi ru sw th tr ur vi zh.
        answers: for each of `XNLI_LABELS` the word that the prompt offers; they become the choices.
        data_dir: folder with `xnli/xnli_dev_{language}.jsonl` and `xnli/xnli_test_{language}.jsonl`; None reads
            `facebook/xnli`.
    Raises:
        CorpusError: if a file or the hub cannot be read, or a file is something else.
    """
    choices = [answers[label] for label in XNLI_LABELS]
    splits = {}
    for split, file in (("validation", "dev"), ("test", "test")):
        if data_dir is None:
            with downloading(XNLI.name):
                hub = XNLI.rows(language, split)
                pairs = [_pair(row, row["label"]) for row in hub]
        else:
            pairs = []
            for place, row in json_lines(data_file(data_dir, "xnli", f"xnli_{file}_{language}.jsonl"), _XNLI):
                with reading(place, _XNLI):
                    pairs.append(_pair(row, XNLI_LABELS.index(row["label"])))
        rows = [{"language": language, "choices": choices, **pair} for pair in pairs]
        splits[split] = datasets.Dataset.from_list(rows, features=PAIRS)
    return datasets.DatasetDict(splits)


def fact_probing(language: str, patterns: Sequence[str], data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """Capitals (relation P36 of mParaRel), each fact in each paraphrase: the split `test`, with the columns of `FACTS`.

    Subjects with one name are one fact with several answers. An answer is right with and without what tells it from
    others of its name (`bare_name`); choices are without. They are the first answer and nine capitals of other
    subjects, drawn by the subject. Rows come in rounds: in each, every fact once, and the paraphrases in turn, so
    that the first rows are different facts. `id` is the same in all languages: the subject's item of Wikidata (of
    subjects with one name, the first) and the paraphrase.

    Args:
        language: one of en de es fr ru zh vi th ar pt tr.
        patterns: sentences with `{subject}` that end where the answer begins.
        data_dir: folder with `fact_probing/tuples/{language}.jsonl` as mParaRel publishes them (Chinese is `zh-hans`);
            None reads mParaRel's own repository.
    Raises:
        CorpusError: if the file cannot be read, or is something else, or has fewer than ten capitals.
    """
    code = MPARAREL_CODES.get(language, language)
    if data_dir is None:
        source: str | Path = MPARAREL.format(code=code)
    else:
        source = data_file(data_dir, "fact_probing", "tuples", f"{code}.jsonl")
    capitals: dict[str, list[str]] = {}
    items: dict[str, str] = {}
    for place, row in json_lines(source, _MPARAREL):
        with reading(place, _MPARAREL):
            subject = text_in(row, "sub_label")
            capitals.setdefault(subject, []).append(text_in(row, "obj_label"))
            items.setdefault(subject, text_in(row, "sub_uri"))
    all_capitals = sorted({bare_name(capital) for names in capitals.values() for capital in names})
    if len(all_capitals) < CANDIDATES:
        raise CorpusError(f"{source}: capitals found: {len(all_capitals)}, expected at least {CANDIDATES}; {OR_HUB}")
    facts: list[dict[str, Any]] = []
    for subject, names in capitals.items():
        answers = list(dict.fromkeys(form for name in names for form in (name, bare_name(name))))
        drawn = random.Random(f"{SEED} {subject}")
        choices = [
            bare_name(names[0]),
            *drawn.sample([name for name in all_capitals if name not in answers], CANDIDATES - 1),
        ]
        drawn.shuffle(choices)
        label = choices.index(bare_name(names[0]))
        facts.append({"subject": subject, "answers": answers, "choices": choices, "label": label})
    rows = [
        {
            "id": f"{items[fact['subject']]}/{pattern}",
            "language": language,
            "pattern": pattern,
            "prompt": patterns[pattern].format(subject=fact["subject"]),
        }
        | fact
        for turn in range(len(patterns))
        for number, fact in enumerate(facts)
        for pattern in [(number + turn) % len(patterns)]
    ]
    return datasets.DatasetDict(test=datasets.Dataset.from_list(rows, features=FACTS))


_QUALIFIER = regex.compile(r"\s*(?:\([^()]*\)|（[^（）]*）|[,،，、].*|(?<=\p{Han}{2})市)$")


def bare_name(name: str) -> str:
    """A place's name without what tells it from others of that name.

    That is what stands in final brackets or after a comma (`Richmond, Texas`, `Boone (Carolina del Norte)`), and 市,
    city.
    """
    return _QUALIFIER.sub("", name) or name


def mzsre(context_language: str, question_language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """MzsRE, 743 edits stated in one language and asked for in another: the split `test`, with the columns of `EDITS`.

    The context is the question with its edited answer, in one language; question and answer are the same in the other.

    Args:
        context_language: language of the context; one of the two is en.
        question_language: language of question and answer; the other is one of de es fr pt ru th tr vi zh, or en, too:
            the English rows, which are the same in every file, of the German one.
        data_dir: folder with `mzsre/en-{language}.json` as ReMaKE publishes them; None reads ReMaKE's own repository.
    Raises:
        CorpusError: if the file cannot be read, or is something else.
    """
    other = question_language if context_language == "en" else context_language
    other = "de" if other == "en" else other
    if data_dir is None:
        source: str | Path = MZSRE.format(language=other)
    else:
        source = data_file(data_dir, "mzsre", f"en-{other}.json")
    space = "" if context_language == "zh" else " "
    with reading(source, _MZSRE):
        rows = [
            {
                "language": question_language,
                "context": text_in(edit[context_language], "src") + space + text_in(edit[context_language], "alt"),
                "question": text_in(edit[question_language], "src"),
                "answers": [text_in(edit[question_language], "alt")],
            }
            for edit in strict_json.parse(text_of(source, _MZSRE), finite=False)
        ]
    return datasets.DatasetDict(test=datasets.Dataset.from_list(rows, features=EDITS))


def text(
    language: str, data_dir: str | None = None, text_documents: int | str | None = None, **_: Any
) -> datasets.DatasetDict:
    """The last documents of a corpus, in its order: the split `test`, with the column of `TEXTS`.

    Detection reads a corpus from its start, so evaluation takes its end: the last 500 documents, and never more than
    the last half, unless the metadata says otherwise. What is a document is what `plnd.read_documents` says, for both.

    Args:
        language: two-letter code of the corpus.
        data_dir: folder with `corpora/{language}.jsonl` (a JSON object with a `text` on each line) or, where that is
            missing, `corpora/{language}.txt` (a document on each line), else the one with another ending that
            `plnd.read_documents` reads; None reads Wikipedia, `wikimedia/wikipedia`
            20231101, of which only the parquet row groups that hold the last 500 articles are downloaded.
        text_documents: from the metadata; "all", or how many to take from the end (all, if there are fewer).
    Raises:
        CorpusError: if the file or the hub cannot be read, or no document is left to take.
    """
    wanted = TEXT_DOCUMENTS if text_documents is None else _count(text_documents)
    if data_dir is None:
        source = WIKIPEDIA.format(language=language)
        if wanted is None:
            raise CorpusError(f'{source}: text_documents "all" would download the whole Wikipedia; give a number')
        with downloading(source):
            taken = last_texts(source, wanted, at_most_half=text_documents is None)
    else:
        taken = end_of_corpus(_corpus(data_file(data_dir, "corpora"), language), text_documents)
    return datasets.DatasetDict(test=datasets.Dataset.from_dict({"text": taken}, features=TEXTS))


def end_of_corpus(path: str | Path, text_documents: int | str | None = None) -> list[str]:
    """The last documents of a corpus in a file, as `text` has them.

    Raises:
        CorpusError: if no document is left to take.
    """
    wanted = TEXT_DOCUMENTS if text_documents is None else _count(text_documents)
    last = deque(enumerate(read_documents(path), start=1), maxlen=wanted)
    total = last[-1][0] if last else 0
    first_half = total - total // 2 if text_documents is None else 0
    taken = [document for number, document in last if number > first_half]
    if not taken:
        raise CorpusError(
            f"{path}: documents found: {total}, expected at least 2, to score the last half; add some, "
            'or score all with --metadata \'{"text_documents": "all", …}\''
        )
    return taken


def _count(text_documents: int | str) -> int | None:
    """The number that the metadata gives, None for "all"."""
    if text_documents == "all":
        return None
    if isinstance(text_documents, bool) or not str(text_documents).isdecimal() or int(text_documents) == 0:
        raise CorpusError(f'text_documents: found {text_documents!r}, expected "all" or a number above 0')
    return int(text_documents)


def _corpus(folder: Path, language: str) -> Path:
    """The file of a language's corpus: .jsonl, else .txt, else the one of another form."""
    path = find_corpus(folder, language)
    if path is not None:
        return path
    raise CorpusError(
        f"{folder}: found neither {language}.jsonl (an object with a `text` on each line) nor {language}.txt "
        f"(a document on each line), nor {language} in another form of docs/corpora.md; put one there, or leave out "
        "data_dir to read Wikipedia from the hub"
    )


def _squad(language: str, path: Path) -> list[dict[str, Any]]:
    """The questions of a SQuAD v1.1 file as rows with the columns of `QUESTIONS`."""
    with reading(path, _SQUAD):
        rows = [
            _question(language, qa, paragraph["context"], [answer["text"] for answer in qa["answers"]])
            for article in strict_json.parse(text_of(path, _SQUAD), finite=False)["data"]
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    if not rows:
        raise CorpusError(f"{path}: no question found, expected {_SQUAD}")
    for row in rows:
        if not row["answers"]:
            raise CorpusError(f"{path}: question {row['id']} has no answer, expected {_SQUAD}")
    return rows


def _question(language: str, qa: Mapping[str, Any], context: str, answers: Sequence[str]) -> dict[str, Any]:
    """One row with the columns of `QUESTIONS`; `qa` gives its id and question."""
    return {
        "id": qa["id"],
        "language": language,
        "context": context.replace("\ufeff", "").strip(),
        "question": text_in(qa, "question"),
        "answers": [text_in({"answer": answer}, "answer") for answer in answers],
    }


def _choice(language: str, row: Mapping[str, Any], labels: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """One row with the columns of `CHOICES`; `row` gives its id, stem and key."""
    return {
        "id": row["id"],
        "language": language,
        "question": text_in(row["question"], "stem"),
        "choices": [text_in({"choice": text}, "choice") for text in texts],
        "label": list(labels).index(row["answerKey"]),
    }


def _pair(row: Mapping[str, Any], label: int) -> dict[str, Any]:
    """Premise, hypothesis and label of one row; the hub says -1 where there is no label."""
    if label not in range(len(XNLI_LABELS)):
        raise RowError(f"label: found {label}, expected 0, 1 or 2")
    return {"premise": text_in(row, "premise"), "hypothesis": text_in(row, "hypothesis"), "label": label}
