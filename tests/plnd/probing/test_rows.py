"""Rows outside the table: written, read strictly, and used only for models whose own twin passes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import plnd
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import FamilyError, PLNDError
from plnd.models import accepted, families
from plnd.models.families import FAMILIES, Norm, Rotation
from plnd.models.layout import find_family
from plnd.probing.probe import probe
from plnd.probing.rows import as_code, read_row, write_row

DOCUMENTS = [[5, 9, 33, 7, 61, 4], [8, 8, 70, 12, 3, 9, 41]]
SMALL = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512)


@pytest.fixture
def nothing_accepted():
    """What a test has accepted is forgotten after it."""
    yield
    accepted.forget()


@pytest.fixture(scope="module")
def biogpt():
    """A configuration of a type that the table does not list, and whose modules are not Llama's."""
    return CONFIG_MAPPING["biogpt"](**SMALL, intermediate_size=40)


@pytest.fixture(scope="module")
def found(biogpt):
    """What a probe of it finds."""
    return probe(biogpt)


def test_a_probed_row_is_used_once_its_twin_passes(biogpt, found, tmp_path, nothing_accepted):
    """A model of an unlisted type is refused, a written row is accepted for it, and the scores say that it was probed,
    with the row's digest and what of it is exact."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(biogpt).eval()
    with pytest.raises(FamilyError, match="model family 'biogpt' is not in the families table"):
        find_family(model)
    write_row(found.family, tmp_path / "row.json")
    row = plnd.accept_family(tmp_path / "row.json", model)
    config = DetectConfig(min_length=4, qk="exact" if "q_proj" in row.exact else "off")
    said = detect(model, DOCUMENTS, config).metadata.model.row
    assert said == {"probed": "biogpt", "sha256": row.record()["sha256"], "exact": list(row.exact)}
    assert {"v_proj", "o_proj", "up_proj", "down_proj"} <= set(row.exact)


@pytest.mark.slow
def test_a_row_is_not_used_for_another_configuration(biogpt, found, nothing_accepted):
    """A switch that the accepted configuration does not have is another twin: the row does not apply; a size is not."""
    plnd.accept_family(found.family, biogpt)
    make = CONFIG_MAPPING["biogpt"]
    larger = AutoModelForCausalLM.from_config(make(**SMALL | {"hidden_size": 48}, intermediate_size=80))
    assert find_family(larger).exact is not None
    other = AutoModelForCausalLM.from_config(make(**SMALL, intermediate_size=40, hidden_act="silu"))
    with pytest.raises(FamilyError, match="not in the families table"):
        find_family(other)


@pytest.mark.slow
def test_a_wrong_row_is_not_accepted(biogpt, found, nothing_accepted):
    """A row with a norm that the block does not have, or a module that is not there, is refused and not accepted."""
    stack = found.family.stacks[0]
    wrong_norm = replace(stack, feed_forward_norm=Norm("final_layer_norm", eps="eps"))
    more = replace(stack, projections=(*stack.projections, replace(stack.projections[0], name="x_proj")))
    renamed = replace(wrong_norm, name="{n}.0")  # no block has its number for a name
    for wrong in (wrong_norm, replace(stack, feed_forward="fc3"), more, renamed, replace(stack, projections=())):
        with pytest.raises(FamilyError, match="does not pass on the twin of this 'biogpt' model"):
            plnd.accept_family(replace(found.family, stacks=(wrong,)), biogpt)
    assert accepted.accepted(biogpt) is None


@pytest.mark.parametrize(
    ("model_type", "words"),
    [("llama", "the row 'biogpt' is for model_type biogpt, but this model's is 'llama': run plnd probe on this one")],
)
def test_a_row_of_another_type_is_refused(found, model_type, words):
    """A row holds for its own type."""
    with pytest.raises(FamilyError, match=re.escape(words)):
        plnd.accept_family(found.family, CONFIG_MAPPING[model_type]())


def test_the_tables_own_rows_are_not_replaced():
    """A model whose type is in the table is bound by the table."""
    with pytest.raises(FamilyError, match="the families table has a row for 'llama' already"):
        plnd.accept_family(FAMILIES["llama"], CONFIG_MAPPING["llama"]())


def test_rows_come_back_from_files(tmp_path):
    """Every row of the table is the same after it was written and read."""
    for family in FAMILIES.values():
        write_row(family, tmp_path / "row.json")
        assert read_row(tmp_path / "row.json") == family


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row | {"exact": ["q_proj"]}, "not an object of a row's fields"),
        (lambda row: row | {"extra": 1}, "unknown field extra"),
        (lambda row: row | {"stacks": [row["stacks"][0] | {"layers": "x"}]}, "unknown field layers"),
        (lambda row: {name: value for name, value in row.items() if name != "stacks"}, "stacks: Field required"),
        (lambda row: row | {"stacks": "layers"}, "stacks: "),
        (lambda row: [row], "not an object of a row's fields"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path, change, words):
    """A file's fields are all checked; none can claim to have been proven."""
    (tmp_path / "row.json").write_text(json.dumps(change(json.loads(FAMILIES["llama"].as_json()))))
    with pytest.raises(PLNDError, match=re.escape(words)):
        read_row(tmp_path / "row.json")


def test_no_file_is_one_line(tmp_path):
    """A file that is not there, or no JSON, is an error of one line."""
    with pytest.raises(PLNDError, match="cannot be read"):
        read_row(tmp_path / "none.json")
    (tmp_path / "row.json").write_text("{")
    with pytest.raises(PLNDError, match="plnd probe --output writes one"):
        read_row(tmp_path / "row.json")


@pytest.mark.parametrize("name", ["llama", "smollm3", "cohere", "gpt2", "mixtral", "bloom"])
def test_drafts_are_rows(name):
    """What is printed to be pasted makes the row, in the table's own names."""
    names = {one: getattr(families, one) for one in ("Family", "Stack", "Projection", "Norm", "like_llama", "replace")}
    assert eval(as_code(FAMILIES[name]).rstrip(","), names | {"Rotation": Rotation}) == FAMILIES[name]
