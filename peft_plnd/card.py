"""The model card of an adapter: what it is, how to load it, which neurons of which language, on which base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plnd.io.files import write_bytes
from plnd.secrets import portable

BEGIN = "<!-- plnd: written anew whenever the adapter is saved; text outside of this part is kept -->"
END = "<!-- plnd: end -->"
CARD = "README.md"
VERSIONS = "### Framework versions"
"""What PEFT puts at the end of a card."""
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
"""PEFT's type of a task to the class of transformers that loads such a base."""


def write_card(folder: str | Path, said: Mapping[str, Any]) -> None:
    """Writes a folder's card, or its part of the card that is there.

    PEFT puts its template there first, whose questions this part answers: it takes the template's place. What anybody
    else wrote stays, behind this part.

    Args:
        folder: of the adapter.
        said: what its `adapter_config.json` holds.
    """
    from huggingface_hub import ModelCard, ModelCardData

    path = Path(folder, CARD)
    template = ModelCard.from_template(ModelCardData())
    card = ModelCard.load(path) if path.exists() else template
    before, begin, rest = card.text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = "", f"\n\n{_own(card.text, template.text)}"
    card.text = f"{before}{BEGIN}\n\n{description(said)}\n{END}{after.rstrip()}\n"
    card.data.library_name = "peft"
    card.data.tags = sorted({*(card.data.tags or ()), "neuron-select", "plnd"})
    base = said["base_model_name_or_path"]
    if portable(base) == base:  # where it is a folder of this machine the hub knows no such model
        card.data.base_model = card.data.base_model or base
    card.data.language = card.data.language or (said["source"] or {}).get("language")
    write_bytes(str(card).encode(), path)


def description(said: Mapping[str, Any]) -> str:
    """The card's text, as Markdown."""
    source = said["source"] or {}
    base, language = portable(said["base_model_name_or_path"]) or "its base model", source.get("language")
    trained = sum(projections(said["indices"]).values())
    of = f" of the {source['of']:,} neurons" if "of" in source else " neurons"
    whose = ", drawn at random" if _drawn(said) else f", which serve the language {language}" if language else ""
    rows = [
        ("base model", f"`{base}`" + (f", revision `{said['revision']}`" if said["revision"] else "")),
        ("language", language),
        ("rule", source.get("rule")),
        ("set of neurons", source.get("sha256") and f"{source['neurons']:,}, SHA-256 `{source['sha256']}`"),
        ("only in", " ".join([*(said["projections"] or ()), said["regions"] or ""]).strip()),
        ("drawn at random", _drawn(said)),
        ("biases", None if said["bias"] == "none" else said["bias"]),
        ("also trained in full", ", ".join(f"`{name}`" for name in said["modules_to_save"] or ())),
    ]
    facts = "\n".join(f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in rows if value)
    counts = "\n".join(f"| `{name}` | {count:,} |" for name, count in projections(said["indices"]).items())
    return f"""# Neuron-select adapter for {base}

Trains {trained:,}{of} of `{base}`{whose}: rows and columns of its projections
([PLND](https://arxiv.org/abs/2402.18815)), by the [PEFT](https://github.com/huggingface/peft) method neuron-select of
the package plnd. Every other weight is the base model's, bit for bit.

| | |
|---|---|
{facts}

| projection | neurons |
|---|---|
{counts}

## Use

The package `plnd` has to be installed, and nothing of it to be imported:

```python
from peft import PeftModel
from transformers import {_class(said)}

base = {_class(said)}.from_pretrained({_arguments(said)})
model = PeftModel.from_pretrained(base, "ADAPTER")  # this folder, or its name on the hub
```

PEFT's `AutoPeftModel…`, transformers' `pipeline` and `lm_eval --model hf --model_args pretrained={base},peft=ADAPTER`
load it as well. (Where `PLND_BRIDGE=0` is set, `import peft_plnd` first.) `model.merge_and_unload()` makes an ordinary
model of it, `peft_plnd.save_as_lora` a LoRA adapter."""


def projections(indices: Mapping[str, Mapping[str, list[int]]]) -> dict[str, int]:
    """Number of trained rows and columns by the last word of the modules that they lie in."""
    counts: Counter[str] = Counter()
    for module, axes in indices.items():
        for axis, values in axes.items():
            counts[f"{module.rpartition('.')[2]} ({'rows' if axis == 'out' else 'columns'})"] += len(values)
    return dict(sorted(counts.items()))


def _drawn(said: Mapping[str, Any]) -> str | None:
    if said["control"]:
        return f"as many of each block and projection as the set has, seed {said['seed']}"
    return said["fraction"] and f"{said['fraction']:.3%} of each projection, seed {said['seed']}"


def _class(said: Mapping[str, Any]) -> str:
    mapped = (said["auto_mapping"] or {}).get("base_model_class")
    return CLASSES.get(said["task_type"], mapped or "AutoModel")


def _arguments(said: Mapping[str, Any]) -> str:
    name = repr(str(portable(said["base_model_name_or_path"]) or "BASE")).replace("'", '"')
    return name + (f', revision="{said["revision"]}"' if said["revision"] else "")


def _own(text: str, template: str) -> str:
    """A card without the lines of the template, if nobody filled it in: what PEFT added at its end; else all of it."""
    known, lines = set(template.splitlines()), text.splitlines()
    added = [line for line in lines if line not in known]
    if all(line == VERSIONS or line.startswith("- PEFT ") for line in added):
        return "\n".join(f"{line}\n" if line == VERSIONS else line for line in added)
    return text
