"""Puts artifacts on the Hugging Face hub, with a card that says what they are, in one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plnd.any_artifact import Artifact, load
from plnd.errors import PLNDError
from plnd.io.files import read_bounded
from plnd.io.hub import SCHEME, hub_errors, parts_of
from plnd.neurons.history import rule_in_words
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.scores import Scores
from plnd.secrets import portable

CARD = "README.md"
BEGIN = "<!-- plnd: written anew by every `plnd push`; text outside of this part is kept -->"
END = "<!-- plnd: end -->"
MAX_EVALUATION = 2**16
"""Bytes of a text that goes into the card."""


def push(
    files: Sequence[str | Path],
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    evaluation: str | Path | None = None,
) -> str:
    """Uploads artifacts and writes the repository's card; makes the repository if there is none.

    The card describes the files of this call; what is in the repository beside them stays.

    Args:
        files: artifacts, of one model; each is read and checked first.
        repository: `user/repo`.
        private: of a repository that is made; by default as the account has it.
        revision: a branch of the repository; the main one by default.
        evaluation: a Markdown file that goes into the card, such as `ablation.md` of `plnd ablate`.

    Returns:
        The commit's address.

    Raises:
        PLNDError: if a file is no whole artifact, two have one name or other models, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    parts_of(f"{SCHEME}{repository}/{CARD}")
    artifacts = read_artifacts(files)
    text = None if evaluation is None else _evaluation(evaluation)
    api = HfApi(library_name="plnd")
    with hub_errors(f"{SCHEME}{repository}"):
        api.create_repo(repository, private=private, exist_ok=True)
        card = card_of(artifacts, repository, text, _card_there(repository, revision))
        operations = [CommitOperationAdd(Path(file).name, Path(file)) for file in files]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        names = ", ".join(artifacts)
        found = api.create_commit(repository, operations, commit_message=f"plnd push: {names:.160}", revision=revision)
    return str(found.commit_url)


def read_artifacts(files: Sequence[str | Path]) -> dict[str, Artifact]:
    """The artifacts by the files' names.

    Raises:
        PLNDError: if one is damaged, is a part, or is the hub's, or two have one name or models.
    """
    found: dict[str, Artifact] = {}
    for file in files:
        name = Path(file).name
        if str(file).startswith(SCHEME) or name in found or name == CARD:
            raise PLNDError(f"{file}: expected files of this machine, each of another name")
        found[name] = load(file)
    models = {(one.metadata.model.name, one.metadata.model.revision) for one in found.values()}
    if len(models) != 1:
        raise PLNDError(
            f"artifacts of {len(models)} models, expected one: push those of each into a repository of their own"
        )
    return found


def card_of(artifacts: Mapping[str, Artifact], repository: str, evaluation: str | None, there: str | None) -> str:
    """The card, with its metadata.

    Args:
        artifacts: by file name.
        repository: where they will be.
        evaluation: Markdown.
        there: the card that is in the repository, whose own text stays.

    Raises:
        PLNDError: if its metadata cannot be read.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard("---\n{}\n---\n" if there is None else there)
    except Exception as error:  # of YAML, and of the hub's client
        reason = " ".join(str(error).split())[:160]
        raise PLNDError(f"{repository}: the metadata of its {CARD} cannot be read ({reason}); mend it there") from None
    before, begin, rest = card.text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = "", f"\n\n{card.text}"
    text = description(artifacts, repository, evaluation)
    card.text = f"{before}{BEGIN}\n\n{text}\n\n{END}{after.rstrip()}\n"
    data: Any = card.data
    model = next(iter(artifacts.values())).metadata.model
    languages = {x for one in artifacts.values() for x in _languages(one)}
    data.library_name = data.library_name or "plnd"
    data.tags = sorted({*(data.tags or ()), "plnd", "neurons", "interpretability", "multilingual"})
    data.language = data.language or sorted(languages) or None
    if model.hub or (model.hub is None and model.revision):
        data.base_model = data.base_model or model.name
    return str(card)


def description(artifacts: Mapping[str, Artifact], repository: str, evaluation: str | None) -> str:
    """The card's text."""
    model = next(iter(artifacts.values())).metadata.model
    name = portable(model.name)
    base = f"`{name}`" + (f", revision `{model.revision}`" if model.revision else "")
    rows = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in map(_row, artifacts, artifacts.values()))
    first = next((name for name, one in artifacts.items() if isinstance(one, NeuronSet)), None)
    use = ""
    if first is not None:
        use = f"""## Use

```sh
lm_eval --model plnd --model_args mask={SCHEME}{repository}/{first} --tasks …
plnd ablate {SCHEME}{repository}/{first} --tasks …
```

```python
import plnd

neurons = plnd.load("{SCHEME}{repository}/{first}")  # …@revision for a branch, tag or commit
with plnd.deactivated(plnd.load_model("{name}"), neurons):
    ...
```
"""
    measured = f"\n## Evaluation\n\n{evaluation.strip()}\n" if evaluation else ""
    return f"""# Language neurons of {name}

Which neurons (rows and columns of the projections) of {base} serve a language, found by plnd
([PLND](https://arxiv.org/abs/2402.18815)).

| file | kind | language | content | rule | documents | SHA-256 |
|---|---|---|---|---|---|---|
{rows}

{use}{measured}""".rstrip()


def _row(name: str, one: Artifact) -> tuple[str, ...]:
    said: Mapping[str, Any] = one.metadata
    kind = str(said["format"]).removeprefix("plnd.")
    read = said["corpora"].values() if "corpora" in said else [said["corpus"]]
    content, rule = "", ""
    if isinstance(one, NeuronSet):
        content = f"{len(one):,} of {one.total:,} neurons ({len(one) / one.total:.3%})"
        rule = rule_in_words(one.metadata)
    elif isinstance(one, Scores):
        kind, content = f"{kind} ({one.metadata.method.name})", ", ".join(one.metadata.method.projections)
    documents = f"{sum(corpus['documents'] for corpus in read):,}"
    return name, kind, ", ".join(_languages(one)), content, rule, documents, f"`{one.digest}`"


def _languages(one: Artifact) -> list[str]:
    """Of a set or scores the one that they are of, of others all that were read."""
    said: Mapping[str, Any] = one.metadata
    if "language" in said:
        return [said["language"]] if said["language"] else []
    return list(said.get("languages") or said.get("corpora") or ())


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("\n", " ").replace("<", "&lt;")


def _card_there(repository: str, revision: str | None) -> str | None:
    """The card that the repository has, if it has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, CARD, revision=revision, library_name="plnd")).read_text("utf-8")
    except EntryNotFoundError:
        return None


def _evaluation(path: str | Path) -> str:
    try:
        return read_bounded(path, MAX_EVALUATION).decode()
    except UnicodeDecodeError:
        raise PLNDError(f"{path}: not UTF-8 text, expected Markdown such as ablation.md of plnd ablate") from None
