"""Probing: what brute force says of twins that are whole, and of twins that were broken on purpose."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaConfig, __version__

from plnd.addresses import PROJECTIONS
from plnd.models.families import FAMILIES
from plnd.probing.probe import probe, probe_twin
from plnd.probing.twins import build_twin

Q, K, V, O, GATE, UP, DOWN = PROJECTIONS  # noqa: E741


@pytest.fixture(scope="module")
def llama():
    """The twin of a Llama with grouped queries."""
    return build_twin(LlamaConfig(num_key_value_heads=8))


def first(output):
    """What a module gives, of the several things that attention does."""
    return output[0] if isinstance(output, tuple) else output


def doubled(args, output):
    """A factor after the projection, which no module shows."""
    return 2 * output


def bent(args, output):
    """A non-linearity after the projection."""
    return torch.tanh(output)


def gated(args, output):
    """A gate from elsewhere: what another linear form makes of the tokens."""
    return output * torch.sigmoid(output.new_tensor(range(output.shape[1])).sin())[:, None]


def coupled(args, output):
    """A gate that hangs on all neurons of the projection together."""
    return output * torch.sigmoid(output.mean(-1, keepdim=True))


def broken(twin, path: str, change):
    """A copy of a twin in whose first block what one module gives is changed; its weights are the same."""
    copy = deepcopy(twin)

    def hook(module, args, output):
        changed = change(args, first(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    copy.base_model.layers[0].get_submodule(path).register_forward_hook(hook)
    return copy


def exact(found) -> set[str]:
    """Projections of the first kind of block that are exact."""
    return {verdict.projection for verdict in found.kinds[0].verdicts if verdict.exact}


def test_llama_is_exact(llama):
    """Of a Llama as it is all seven projections are exact, and the draft is the table's own row."""
    found = probe_twin(llama)
    assert exact(found) == set(PROJECTIONS)
    assert found.usable
    assert found.family == replace(FAMILIES["llama"], model_types=("llama",))


FEED_FORWARD = {GATE, UP, DOWN}
BREAKS = {
    "factor after o_proj": ("self_attn", doubled, {V, O}),
    "queries that hang on each other": ("self_attn.q_proj", coupled, {Q}),
}
MORE_BREAKS = {
    "tanh after down_proj": ("mlp", bent, FEED_FORWARD),
    "gate from elsewhere on attention": ("self_attn", gated, {V, O}),
    "tanh after o_proj": ("self_attn", bent, {V, O}),
    "factor after down_proj": ("mlp", doubled, FEED_FORWARD),
    "gate from elsewhere on the feed-forward": ("mlp", gated, FEED_FORWARD),
    "keys that hang on each other": ("self_attn.k_proj", coupled, {K}),
    "values that hang on each other": ("self_attn.v_proj", coupled, {V}),
    "gates that hang on each other": ("mlp.gate_proj", coupled, {GATE}),
    "an activation that is coupled": ("mlp.act_fn", coupled, {GATE}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_twins_are_not_exact(llama, name):
    """What was broken is not exact, by a difference that is no rounding, and what was not broken is: brute force asks
    the block what it gives, not the row."""
    _hold(llama, *BREAKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_BREAKS)
def test_more_broken_twins_are_not_exact(llama, name):
    """The same, of other projections and other changes."""
    _hold(llama, *MORE_BREAKS[name])


def _hold(llama, path, kind, wrong):
    found = probe_twin(broken(llama, path, kind))
    assert exact(found) == set(PROJECTIONS) - wrong
    assert found.usable is not bool(wrong - {Q, K})  # queries and keys can be left out
    errors = {v.projection: v.error for v in found.kinds[0].verdicts}
    assert all(errors[name] > 1e-3 for name in wrong)
    assert all(errors[name] < 1e-12 for name in set(PROJECTIONS) - wrong)


EXACT = {
    "biogpt": {Q, K, V, O, UP, DOWN},
    "bitnet": {O},  # a norm before o_proj, one before down_proj
    "codegen": {O, UP, DOWN},  # q, v and k in one matrix, in four pieces
    "cpmant": set(),
    "ctrl": {Q, K},  # a feed-forward without an activation that has a name
    "cwm": set(PROJECTIONS),
    "diffllama": {O, GATE, UP, DOWN},  # the difference of two attentions
    "doge": {Q, K, GATE, UP, DOWN},  # attention's output is multiplied on its way
    "gpt_bigcode": {Q, K, V, O, UP, DOWN},
    "gpt_neo": {V, O, UP, DOWN},  # no SDPA, so that queries and keys cannot be observed
    "hyperclovax": set(PROJECTIONS),
    "internlm3": set(PROJECTIONS),
    "iquestcoder": set(PROJECTIONS),
    "jais2": {Q, K, V, O, UP, DOWN},
    "minicpm3": {GATE, UP, DOWN},  # latent attention
    "moshi": {GATE, UP, DOWN},
    "mpt": {UP, DOWN},
    "nanochat": {V, O, UP, DOWN},  # norms without weights behind the rotation
    "openai-gpt": set(),  # layer norms after the residual sum
    "persimmon": {V, O, UP, DOWN},  # layer norms of queries and keys
    "roberta": set(),
    "roformer": set(),
    "trocr": set(),
    "vaultgemma": set(PROJECTIONS),
    "xlm": {UP, DOWN},
    "youtu": {GATE, UP, DOWN},  # latent attention
}
"""Types without a row, and what of them is exact: each by what its code does."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_types_without_a_row(name):
    """What is exact of a type, in every kind of its blocks, is what its code lets one expect, and no more; where it is
    exact brute force and closed form agree to rounding, where they disagree it is not."""
    if name not in CONFIG_MAPPING:
        pytest.skip(f"transformers {__version__} has no {name}")
    found = probe(CONFIG_MAPPING[name]())
    assert {projection for projection, fine in found.verdicts.items() if fine} == EXACT[name]
    for verdict in (one for kind in found.kinds for one in kind.verdicts):
        assert not verdict.exact or (verdict.error is not None and verdict.error < 1e-12)
        assert verdict.exact or verdict.reason
