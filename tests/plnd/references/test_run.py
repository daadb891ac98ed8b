"""A reference is what hooks written here see, whatever the batches; what it cannot be made of is refused."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from plnd.deactivation import deactivated
from plnd.errors import CorpusError, PLNDError
from plnd.models.layout import Layout
from plnd.references.config import ReferenceConfig
from plnd.references.routing import Routing
from plnd.references.routing_run import routing
from plnd.references.run import reference
from tiny import MASKED, TINY, VARIANTS, tiny_model
from tuning import make_mask

BY_STRUCTURE = ("mixtral",)
EVERY = [n if n in BY_STRUCTURE else pytest.param(n, marks=pytest.mark.slow) for n in sorted(TINY | VARIANTS | MASKED)]
CONFIG = ReferenceConfig(min_length=4, max_length=10, batch_size=2)


def documents(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 96, length).tolist() for length in lengths]


CORPORA = {"de": documents(9, 5, 7), "en": documents(6, 12, seed=1), "zh": documents(8, 3, seed=2)}


def seen(model, ids: list[int]) -> dict[str, torch.Tensor]:
    """Address, or block, to the sum over one document's tokens, which passes alone."""
    layout, found = Layout(model), {}
    with ExitStack() as stack, torch.no_grad():
        for name, target in layout.targets.items():
            if target.experts:
                continue

            def before(module, args, name=name):
                found[name] = args[0].flatten(0, -2).sum(0)

            def after(module, args, output, name=name, target=target):
                found[name] = target.select(output).flatten(0, -2).sum(0)

            column = target.projection.axis == "column"
            register = target.module.register_forward_pre_hook if column else target.module.register_forward_hook
            stack.callback(register(before if column else after).remove)
        for block in layout.blocks:
            if block.name.endswith(".cross"):
                continue

            def leaving(module, args, output, name=block.name):
                found[name] = (output[0] if isinstance(output, tuple) else output).flatten(0, -2).sum(0)

            stack.callback(block.module.register_forward_hook(leaving).remove)
        layout.forward(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    return found


@pytest.mark.parametrize("name", EVERY)
def test_it_is_what_hooks_see_document_by_document(name):
    """Means are over all tokens, directions from the mean of the others' means; in every family, in padded batches."""
    model = tiny_model(name, torch.float32 if name == "xglm" else torch.float64)
    found = reference(model, CORPORA, CONFIG)
    sums, tokens = {}, {}
    for language, texts in CORPORA.items():
        kept = [ids[:10] for ids in texts if len(ids) >= 4]
        parts = [seen(model, ids) for ids in kept]
        sums[language] = {key: sum(part[key] for part in parts) for key in parts[0]}
        tokens[language] = sum(map(len, kept))
    own = {x: {key: value / tokens[x] for key, value in of.items()} for x, of in sums.items()}
    direction, everything = found.direction("en"), sum(tokens.values())
    assert found.means.neurons.keys() | direction.blocks.keys() == sums["de"].keys()
    assert {x: s.tokens for x, s in found.languages.items()} == tokens == {"de": 21, "en": 16, "zh": 8}
    for key in sums["de"]:
        expected = own["en"][key] - (own["de"][key] + own["zh"][key]) / 2
        got = (direction.blocks if key in direction.blocks else direction.neurons)[key]
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)  # norms are float32
        if key not in direction.blocks:
            mean = (sum(of[key] for of in sums.values()) / everything).numpy()
            np.testing.assert_allclose(found.means.neurons[key], mean, rtol=1e-4, atol=1e-5)


def test_the_order_and_the_batch_do_not_matter():
    """But for rounding."""
    model = tiny_model("qwen2")
    one = reference(model, {"de": CORPORA["de"]}, CONFIG).means
    config = ReferenceConfig(min_length=4, max_length=10, batch_size=1)
    other = reference(model, {"de": CORPORA["de"][::-1]}, config).means
    for name, values in one.neurons.items():
        np.testing.assert_allclose(values, other.neurons[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_what_was_off_is_written_down(mode, tmp_path):
    """Means, directions and routing of a model of which neurons are off are not taken for those of the whole one."""
    model = tiny_model("mixtral")
    off = make_mask(model, tmp_path / "off.safetensors", experts=True)
    with deactivated(model, off, mode=mode):
        found = reference(model, CORPORA, CONFIG)
        sent = routing(model, CORPORA, CONFIG)
    said = [{"sha256": off.digest, "language": off.metadata.language, "neurons": len(off)}]
    sent.save(tmp_path / "routing.safetensors")
    for one in (found.means, found.direction("de"), Routing.load(tmp_path / "routing.safetensors")):
        assert one.metadata["deactivated"] == said
    assert "deactivated" not in reference(model, CORPORA, CONFIG).means.metadata


def test_refusals():
    """No language, no document that is long enough, one language for a direction, values that are not finite."""
    model = tiny_model("llama", torch.float32)
    with pytest.raises(PLNDError, match="no corpora"):
        reference(model, {})
    with pytest.raises(PLNDError, match=r"for those of a file pass plnd.read_documents\(file\)"):
        reference(model, {"de": "de.jsonl"}, CONFIG)
    few = tiny_model("gpt2", torch.float32)
    few.config.max_position_embeddings = 8
    with pytest.raises(PLNDError, match="max_length=10: the model has 8 positions; use at most that"):
        reference(few, CORPORA, CONFIG)
    with pytest.raises(CorpusError, match="de: no document of 32 tokens or more"):
        reference(model, {"de": CORPORA["de"]})
    found = reference(model, {"de": CORPORA["de"]}, CONFIG)
    for language in ("de", "fr"):
        with pytest.raises(
            PLNDError, match=f"direction of {language}: corpora of de, expected one of it and of another"
        ):
            found.direction(language)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = torch.inf
    with pytest.raises(PLNDError, match="de: values of 1.* are not finite"):
        reference(model, {"de": CORPORA["de"]}, CONFIG)
