"""Contribution and effective scores (eq. 9 and 10), neuron by neuron in float64."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from plnd.errors import PLNDError
from plnd.models.layout import Layout, attribute
from plnd.roles.attribution import COLUMNS, Attribution, contribution_scores, is_top
from plnd.roles.parallel import Parallel
from plnd.roles.roles import ROLES, find_roles
from tiny import tiny_model

LANGUAGES = ["en", "de", "zh"]


def case(name: str):
    """A tiny model, four examples in three languages, and answers of one to three tokens."""
    generator = torch.Generator().manual_seed(5)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, 97, (length,), generator=generator).tolist()

    inputs = [[ids(2, 8) for _ in LANGUAGES] for _ in range(4)]
    answers = [[ids(1, 4) for _ in LANGUAGES] for _ in range(4)]
    return tiny_model(name), Parallel(LANGUAGES, [["x"] * 3] * 4), inputs, answers


def terms(model, ids: list[int], weighting: str):
    """For each block, of one input alone: activations, what weighs the values, and the values, as lists of floats."""
    layout, seen, handles = Layout(model), defaultdict(dict), []
    for block in layout.blocks:
        if block.stack.activation:
            act = attribute(block.module, block.stack.activation)
            down = layout.targets[f"{block.name}.down_proj"].module
            handles.append(act.register_forward_hook(lambda m, a, o, b=block.name: seen[b].update(act=o[0, -1])))
            handles.append(down.register_forward_pre_hook(lambda m, a, b=block.name: seen[b].update(inner=a[0][0, -1])))
    with torch.no_grad():
        further = {"decoder_input_ids": torch.tensor([[0]])} if model.config.is_encoder_decoder else {}
        model(input_ids=torch.tensor([ids]), **further)
    for handle in handles:
        handle.remove()
    for name, values in seen.items():
        weight = layout.targets[f"{name}.down_proj"].weight()
        own = values["inner" if weighting == "product" else "act"].tolist()
        yield name, values["act"].tolist(), own, weight.T.tolist()


def brute_force(model, inputs, answers, weighting):
    """Every number of the table, from loops over single neurons."""
    embedding = model.get_output_embeddings().weight.tolist()
    table = defaultdict(lambda: {"contribution": [], "top": [], "first": [], "mean": []})
    for row, right in zip(inputs, answers, strict=True):
        seen = [{b: rest for b, *rest in terms(model, ids, weighting)} for ids in row]
        for block in seen[0]:
            width = len(seen[0][block][0])
            active = [sum(own[block][0][k] > 0 for own in seen) for k in range(width)]
            names = ["non_activated", "specific", "partial_shared", "all_shared"]
            role = [names[n] for n in active]
            for p, own in enumerate(seen):
                _, weights, values = own[block]
                product = [abs(a) * sum(x * x for x in v) ** 0.5 for a, v in zip(weights, values, strict=True)]
                scores = [x / sum(product) for x in product]
                best = sorted(range(width), key=lambda k: -scores[k])[: round(0.05 * width)]
                tokens = [embedding[token] for token in right[p]]
                mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
                for r in ROLES:
                    table[p, r, block]["top"].append(sum(role[k] == r for k in best) / len(best))
                for k in range(width):
                    cell = table[p, role[k], block]
                    cell["contribution"].append(scores[k])
                    for name, e in (("first", tokens[0]), ("mean", mean)):
                        cell[name].append(weights[k] * sum(x * y for x, y in zip(e, values[k], strict=True)))
    return table


@pytest.mark.parametrize(
    ("name", "weighting"), [("llama", "product"), ("llama", "activation"), ("gpt2", "product"), ("t5_gated", "product")]
)
def test_every_number_by_brute_force(name, weighting):
    """Contribution, share of the top, and effective scores of first and mean token, by language, role and block."""
    model, parallel, inputs, answers = case(name)
    attribution = Attribution(model, 3, answers, weighting=weighting)
    roles = find_roles(model, parallel, inputs, listener=attribution, batch_size=3)
    expected = brute_force(model, inputs, answers, weighting)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in attribution.rows(LANGUAGES)]
    assert len(rows) == 3 * 4 * len(roles.widths)
    for row in rows:
        cell = expected[LANGUAGES.index(row["language"]), row["role"], row["block"]]
        assert row["neurons"] == len(cell["contribution"])
        assert row["contribution_total"] == pytest.approx(sum(cell["contribution"]) / 4, rel=1e-9)
        assert row["top_share"] == pytest.approx(100 * np.mean(cell["top"]), rel=1e-9)
        if not row["neurons"]:
            assert row["contribution_mean"] is None and row["first_max"] is None
            continue
        assert row["contribution_mean"] == pytest.approx(np.mean(cell["contribution"]), rel=1e-9)
        for token in ("first", "mean"):
            found = [row[f"{token}_{value}"] for value in ("max", "min", "mean", "variance")]
            values = cell[token]
            assert found == pytest.approx([max(values), min(values), np.mean(values), np.var(values)], rel=1e-8)


def test_contributions_of_a_block_sum_to_one():
    """Eq. 9 is normalised over the block's neurons; where nothing is active at all it is zero, not nan."""
    weights = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    norms = torch.tensor([2.0, 0.5, 9.0], dtype=torch.float64)
    expected = torch.tensor([[2 / 3, 1 / 3, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(contribution_scores(weights, norms), expected)


def test_top_neurons():
    """The share is rounded to whole neurons, of which there is at least one."""
    scores = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert is_top(scores, 0.5).tolist() == [False, True, False, True]
    assert is_top(scores, 0.01).tolist() == [False, True, False, False]


def test_without_answers():
    """Contribution scores need no answers; effective scores are then left out."""
    model, parallel, inputs, _ = case("qwen2")
    attribution = Attribution(model, 3)
    find_roles(model, parallel, inputs, listener=attribution)
    for row in attribution.rows(LANGUAGES):
        assert row[4] is not None and row[7:] == (None,) * 8


def test_effective_scores_add_up_to_what_the_block_says_of_the_answer():
    """Summed over all neurons, eq. 10 is E_r times the feed-forward's output: with eq. 2's weights it is exact."""
    model, parallel, inputs, answers = case("llama")
    attribution = Attribution(model, 3, answers)
    find_roles(model, parallel, inputs, listener=attribution)
    layout, outputs, handles = Layout(model), defaultdict(float), []
    bias = {name: layout.targets[f"{name}.down_proj"].module.bias for name in ("0", "1")}
    embedding = model.get_output_embeddings().weight
    for row, right in zip(inputs, answers, strict=True):
        for p, ids in enumerate(row):
            for name, b in bias.items():
                module = layout.targets[f"{name}.down_proj"].module
                handles.append(
                    module.register_forward_hook(
                        lambda m, a, o, key=(p, name), e=embedding[right[p][0]], b=b: outputs.__setitem__(
                            key, outputs[key] + float(e @ (o[0, -1] - b))
                        )
                    )
                )
            with torch.no_grad():
                model(input_ids=torch.tensor([ids]))
            while handles:
                handles.pop().remove()
    for (p, name), expected in outputs.items():
        assert attribution.sum[p, :, int(name), 0].sum() == pytest.approx(expected, rel=1e-9)


def test_refusals():
    """An unknown weighting is an error."""
    with pytest.raises(PLNDError, match="unknown weighting 'gate'"):
        Attribution(tiny_model("llama"), 2, weighting="gate")
