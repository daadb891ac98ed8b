"""Every causal type of transformers has a row, or a reason why not; what is said to compute like Llama does."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING, __version__
from transformers.models.auto import modeling_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from plnd.addresses import PROJECTIONS
from plnd.model_description import TEXT_TWINS
from plnd.models.accepted import listed
from plnd.models.families import like_llama
from plnd.models.layout import Layout
from plnd.models.unlisted import LANGUAGE_MODELS, LIKE_LLAMA, REASONS, said_of, unlisted
from plnd.probing.probe import hold
from plnd.probing.twins import build_twin

SEES = set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
HEARS = set(getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", ()))


def test_every_causal_type_is_on_one_of_the_lists():
    """Each type of the installed transformers has a row, or one entry in `plnd.models.unlisted`."""
    said = {name: said_of(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    unknown = sorted(name for name, lists in said.items() if not lists)
    assert not unknown, (
        f"transformers {__version__} has causal types of which plnd says nothing: {', '.join(unknown)}. For each, run"
        " `plnd probe` on its configuration, then add a row (docs/families.md) or a reason (plnd/models/unlisted.py)"
    )
    assert {name: lists for name, lists in said.items() if len(lists) > 1} == {}


@pytest.mark.slow
def test_every_language_model_that_sees_or_hears_is_on_one_of_the_lists():
    """The language model inside each such type of transformers has a row, or its twin has, or a reason why not."""
    inside = set()
    for name in sorted(SEES | HEARS):
        try:
            inside.add(CONFIG_MAPPING[name]().get_text_config().model_type)
        except (ValueError, TypeError, AttributeError):  # a configuration that has to be told more, or has several
            continue
    assert len(inside) > 50
    unknown = sorted(name for name in inside if not said_of(name))
    assert not unknown, f"transformers {__version__} has language models of which plnd says nothing: {unknown}"


def test_twins_have_rows():
    """What is said to compute as a text-only model is measured by that one's row, and by no other."""
    for tower, twin in TEXT_TWINS.items():
        assert listed(tower) == listed(twin) != []


def test_a_new_type_would_be_noticed():
    """The negative: of a type that nobody has looked at nothing is said."""
    assert said_of("a-type-of-tomorrow") == []


def test_what_has_a_row_is_not_said_to_lack_one():
    """`plnd families` prints each type once."""
    printed = [name for _, names in unlisted() for name in names]
    assert len(printed) == len(set(printed))
    assert not any(listed(name) for name in printed)
    assert set(printed) == {name for name in REASONS if not listed(name)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_are_of_the_types_that_are_named(name):
    """A type that holds a language model of another type is what the list says, and that one is known."""
    if name not in CONFIG_MAPPING:
        pytest.skip(f"transformers {__version__} has no {name}")
    assert CONFIG_MAPPING[name]().get_text_config().model_type == LANGUAGE_MODELS[name]
    assert said_of(LANGUAGE_MODELS[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model family")
@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_what_is_bound_as_llama_computes_like_it(name):
    """The twin of each such type is exact under Llama's row, which is the one that it gets."""
    if name not in CONFIG_MAPPING:
        pytest.skip(f"transformers {__version__} has no {name}")
    twin = build_twin(CONFIG_MAPPING[name]())
    assert Layout(twin).family == like_llama(name)
    assert hold(twin, like_llama(name)) == (PROJECTIONS, "")
