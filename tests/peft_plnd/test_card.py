"""The model card that a saved adapter brings."""

from __future__ import annotations

import ast

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model

from peft_plnd import NeuronSelectConfig
from peft_plnd.card import BEGIN, END
from readme import blocks
from tiny import tiny_model
from tuning import make_mask


@pytest.fixture
def model():
    """A tiny model that has a name."""
    found = tiny_model("llama")
    found.config._name_or_path = found.name_or_path = "made/by-hand"
    return found


def card_of(folder) -> ModelCard:
    """The card of an adapter's folder, as huggingface_hub reads it."""
    return ModelCard.load(folder / "README.md")


def test_it_says_what_the_adapter_is(model, tmp_path):
    """Base, language, rule, counts by projection, the set's digest; none of the template's questions is left."""
    neurons = make_mask(model, tmp_path / "mask.safetensors")
    tuned = get_peft_model(model, NeuronSelectConfig(mask=neurons, projections=["down_proj", "q_proj"]))
    tuned.save_pretrained(tmp_path)
    card, counts = card_of(tmp_path), neurons.counts()
    trained = counts["down_proj"] + counts["q_proj"]
    assert (
        f"Trains {trained} of the {neurons.total} neurons of `made/by-hand`, which serve the language zh" in card.text
    )
    assert f"| `down_proj (columns)` | {counts['down_proj']} |" in card.text
    assert f"| `q_proj (rows)` | {counts['q_proj']} |" in card.text and "| only in | down_proj q_proj |" in card.text
    assert f"SHA-256 `{neurons.digest}`" in card.text and "| rule | top_k 2 |" in card.text
    assert "More Information Needed" not in card.text and "- PEFT " in card.text
    said = card.data.to_dict()
    assert (said["library_name"], said["base_model"], said["language"]) == ("peft", "made/by-hand", "zh")
    assert {"neuron-select", "plnd", "base_model:adapter:made/by-hand"} <= set(said["tags"])


def test_its_code_is_code(model, tmp_path):
    """What it says on loading parses, and names the class for the task."""
    config = NeuronSelectConfig(fraction=0.2, seed=3, task_type="CAUSAL_LM", revision="abc")
    get_peft_model(model, config).save_pretrained(tmp_path)
    text = card_of(tmp_path).text
    (code,) = blocks(text, "python")
    assert any(isinstance(node, ast.Call) for node in ast.walk(ast.parse(code)))
    assert 'AutoModelForCausalLM.from_pretrained("made/by-hand", revision="abc")' in code
    assert "drawn at random" in text and "20.000% of each projection, seed 3" in text


def test_what_people_write_stays(model, tmp_path):
    """Saved again, the part of plnd is new, and the text around it is what it was; so is a card from before."""
    folders = tmp_path / "adapter", tmp_path / "other"
    tuned = get_peft_model(model, NeuronSelectConfig(fraction=0.2))
    tuned.save_pretrained(folders[0])
    path = folders[0] / "README.md"
    path.write_text(path.read_text().replace(END, f"{END}\n\n## My results\n\nbetter").replace("Trains", "Trained"))
    PeftModel.from_pretrained(tiny_model("llama"), folders[0]).save_pretrained(folders[0])
    again = path.read_text()
    assert "## My results\n\nbetter" in again and "Trained" not in again
    assert again.count(BEGIN) == again.count("# Use") == 1
    folders[1].mkdir()
    (folders[1] / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nbefore\n")
    tuned.save_pretrained(folders[1])
    kept = card_of(folders[1])
    assert kept.data.license == "mit" and "# Mine\n\nbefore" in kept.text and kept.text.startswith(BEGIN)


def test_an_adapter_in_a_folder_of_its_own_has_its_own_card(model, tmp_path):
    """PEFT writes other adapters into folders below, and no card there."""
    tuned = get_peft_model(model, NeuronSelectConfig(fraction=0.2), adapter_name="zh")
    tuned.save_pretrained(tmp_path)
    assert card_of(tmp_path / "zh").text.startswith(BEGIN)
