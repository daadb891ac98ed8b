"""Routing shares against counts by hand: a router whose logits are worked out on paper, and each family's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plnd.errors import CorpusError, FamilyError, PLNDError
from plnd.models.layout import Layout
from plnd.references.config import ReferenceConfig
from plnd.references.routing_run import routing
from tiny import tiny_model

CONFIG = ReferenceConfig(min_length=1, batch_size=2)


def on_paper():
    """A Mixtral of four experts, two for each token, in whose blocks token t is unit vector t.

    Attention and experts add nothing, so that both routers see √24 times that vector. The logits of token 3 are
    ln 3, 0, -9, -9: experts 0 and 1, with weights 3/4 and 1/4. Token 4: experts 1 and 2, with 1/2 each; token 5: 3 and
    0, with 4/5 and 1/5.
    """
    model = tiny_model("mixtral")
    logits = {3: (math.log(3), 0, -9, -9), 4: (-9, 0, 0, -9), 5: (0, -9, -9, math.log(4))}
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.experts.down_proj.zero_()
            block.mlp.gate.weight.zero_()
            block.post_attention_layernorm.weight.fill_(1)
            for token, values in logits.items():
                block.mlp.gate.weight[:, token] = torch.tensor(values) / math.sqrt(24)
        for token in logits:
            model.model.embed_tokens.weight[token, token] = 1
    return model


def test_counts_by_hand():
    """Of three languages, in padded batches: zh has tokens 3 3 3 4, en 4 4 5 and 5, de one token 5."""
    found = routing(on_paper(), {"zh": [[3, 3, 3, 4]], "en": [[4, 4, 5], [5]], "de": [[5]]}, CONFIG)
    assert found.languages == ["de", "en", "zh"] and found.blocks == ["0", "1"]
    assert found.metadata.chosen == {"0": 2, "1": 2}
    counts = {"zh": [3, 4, 1, 0], "en": [2, 2, 2, 2], "de": [1, 0, 0, 1]}
    means = {
        "zh": [3 / 4, (3 / 4 + 1 / 2) / 4, 1 / 2, 0],
        "en": [1 / 5, 1 / 2, 1 / 2, 4 / 5],
        "de": [1 / 5, 0, 0, 4 / 5],
    }
    for language, of in counts.items():
        for block in ("0", "1"):
            assert found.tokens[language][block].tolist() == of
            assert found.shares(language)[block].tolist() == [count / (sum(of) / 2) for count in of]
            np.testing.assert_allclose(found.mean_weights(language)[block], means[language], rtol=1e-3)  # the norm's ε
    assert {x: corpus.tokens for x, corpus in found.metadata.corpora.items()} == {"zh": 4, "en": 4, "de": 1}
    assert found.metadata.corpora["en"].documents == 2


MIXTURES = ("mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "jamba", "granitemoeshared", "phimoe", "ernie4_5_moe")
MIXTURES += ("deepseek_v2", "mistral4", "hunyuan_v1_moe", "qwen2_moe", "glm4_moe", "minimax_m2", "olmoe", "qwen3_moe")
MIXTURES += ("exaone_moe", "hy_v3", "solar_open")


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_it_is_what_passes_document_by_document(name):
    """In every family the counts are those of each document's pass alone, seen by a hook written here."""
    model, corpora = tiny_model(name), {"zh": [[5, 9, 33, 7], [8, 2]], "en": [[61, 4, 11, 70, 9]]}
    found = routing(model, corpora, ReferenceConfig(min_length=2, batch_size=4))
    layout = Layout(model)
    blocks = [block for block in layout.blocks if block.stack.experts]
    counts = {x: {b.name: np.zeros_like(found.tokens[x][b.name]) for b in blocks} for x in corpora}
    sums = {x: {b.name: np.zeros_like(found.weights[x][b.name]) for b in blocks} for x in corpora}
    language = ""

    def see(module, args, name):
        for experts, shares in zip(args[1].tolist(), args[2].tolist(), strict=True):
            for expert, share in zip(experts, shares, strict=True):
                counts[language][name][expert] += 1
                sums[language][name][expert] += share

    for block in blocks:
        block.at(block.stack.experts).register_forward_pre_hook(lambda m, args, name=block.name: see(m, args, name))
    with torch.no_grad():
        for language, documents in corpora.items():  # noqa: B007
            for ids in documents:
                layout.forward(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    for x in corpora:
        for block in blocks:
            assert found.tokens[x][block.name].tolist() == counts[x][block.name].tolist()
            np.testing.assert_allclose(found.weights[x][block.name], sums[x][block.name], rtol=1e-5)
    assert set(found.blocks) == {block.name for block in blocks}


def test_what_cannot_be_counted_is_refused():
    """A dense model, no language, and documents that are all too short; nothing remains on the model."""
    model = on_paper()
    with pytest.raises(FamilyError, match="'llama' has no experts, so that nothing is routed"):
        routing(tiny_model("llama"), {"zh": [[3]]}, CONFIG)
    with pytest.raises(PLNDError, match="no corpora"):
        routing(model, {}, CONFIG)
    with pytest.raises(CorpusError, match="en: no document of 2 tokens or more .1 shorter"):
        routing(model, {"zh": [[3, 4]], "en": [[3]]}, ReferenceConfig(min_length=2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
