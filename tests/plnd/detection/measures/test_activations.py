"""`method="activation"` and `method="lape"`: what is measured, against activations taken by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handmade import logs_over_median
from plnd.commands.main import main
from plnd.demo_data import demo_model
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import PLNDError
from plnd.models.layout import Layout
from plnd.neurons.scores import Scores
from tiny import tiny_model

LENGTHS = (9, 5, 12)


def documents() -> list[list[int]]:
    """Token ids of documents of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]


def found(model, method: str, batch_size: int = 2):
    """Scores of the documents."""
    return detect(model, documents(), DetectConfig(method=method, min_length=1, batch_size=batch_size))


def activations(model, document: list[int]) -> dict[str, torch.Tensor]:
    """Output of the non-linearity by block, [tokens, width], of models without experts."""
    layout, seen = Layout(model), {}
    handles = []
    for block in layout.blocks:
        if block.stack.activation is None:
            continue
        gate = layout.targets.get(f"{block.name}.gate_proj", layout.targets[f"{block.name}.up_proj"])

        def note(module, args, output, block=block, gate=gate):
            value = block.activation(gate.select(output))
            seen[block.name] = value.reshape(len(document), -1)

        handles.append(gate.module.register_forward_hook(note))
    ids = torch.tensor([document])
    with torch.no_grad():
        layout.forward(ids, torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    return seen


VALUES = {"activation": torch.abs, "lape": lambda x: (x > 0).double()}


@pytest.mark.parametrize("method", ["activation", "lape"])
def test_scores_are_means_over_tokens(family, method):
    """Minimum, rank and logs are over documents' own means, the mean over all tokens of the corpus."""
    model = tiny_model(family)
    if any(block.stack.experts for block in Layout(model).blocks):
        return  # by hand below
    scores = found(model, method)
    each = [activations(model, document) for document in documents()]
    for block in each[0]:
        values = [VALUES[method](a[block]) for a in each]
        means = torch.stack([x.mean(0) for x in values]).numpy()
        whole = torch.cat(values).mean(0).numpy()
        ranks = np.array([[(row >= x).sum() - 1 for x in row] for row in means.astype(np.float32)])
        for address in (f"{block}.{p}" for p in ("gate_proj", "up_proj", "down_proj")):
            if address not in Layout(model).targets:
                continue
            assert np.allclose(scores.minimum[address], means.min(0), rtol=1e-5, atol=1e-7)
            assert np.allclose(scores.mean[address], whole, rtol=1e-5, atol=1e-7)
            logs = np.array([logs_over_median(row) for row in means])
            assert np.allclose(scores.mean_log[address], logs.mean(0), atol=1e-4)
            assert np.allclose(scores.std_log[address], logs.std(0, ddof=1), atol=1e-4)
            if method == "activation":  # shares of a few tokens tie, and rounding decides between them
                assert np.array_equal(scores.worst_rank[address], ranks.max(0))
    assert {address.rpartition(".")[2] for address in scores.mean} <= {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("method", ["activation", "lape"])
def test_experts_rest_while_tokens_go_elsewhere(method):
    """A token that is not routed to an expert counts as one at which its neurons are not active."""
    model = tiny_model("mixtral")
    scores, total, seen = found(model, method), 0, []

    def note(module, args):
        seen[:] = args[:2]

    model.model.layers[1].mlp.experts.register_forward_pre_hook(note)
    for document in documents():
        experts = model.model.layers[1].mlp.experts
        with torch.no_grad():
            model(input_ids=torch.tensor([document]))
        hidden, index = seen
        gates = torch.einsum("th,eoh->teo", hidden, experts.gate_up_proj)[..., :40]
        routed = torch.stack([(index == expert).any(-1) for expert in range(4)], dim=1)
        total = total + (VALUES[method](experts.act_fn(gates)) * routed[..., None]).sum(0)
    expected = (total / sum(LENGTHS)).flatten().detach().numpy()
    for projection in ("gate_proj", "up_proj", "down_proj"):
        assert np.allclose(scores.mean[f"1.{projection}"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["activation", "lape"])
def test_batches_do_not_change_scores(method):
    """Padding is no token."""
    model = tiny_model("llama")
    one, three = found(model, method, 1), found(model, method, 3)
    for part in ("minimum", "mean"):
        for address, values in getattr(one, part).items():
            assert np.allclose(values, getattr(three, part)[address], rtol=1e-5, atol=1e-7)


def test_probabilities_are_probabilities():
    """A share of tokens is between 0 and 1, and its mean over documents is not that over tokens."""
    scores = found(tiny_model("qwen2"), "lape")
    values = np.concatenate(list(scores.mean.values()))
    assert 0 <= values.min() and values.max() <= 1 and 0.2 < values.mean() < 0.8
    assert scores.metadata["method"] == {
        "name": "lape",
        "scoring": "paper",
        "projections": ["gate_proj", "up_proj", "down_proj"],
        "qk": "off",
        "epsilon": None,
        "min_length": 1,
        "batch_size": 2,
        "log_floor": 1e-3,
    }


def test_importance_and_activation_differ():
    """The same corpus by another method gives other numbers under the same addresses."""
    model = tiny_model("llama")
    plnd, activation = found(model, "plnd"), found(model, "activation")
    assert not np.allclose(plnd.mean["0.up_proj"], activation.mean["0.up_proj"])


@pytest.mark.parametrize(
    ("settings", "wording"),
    [
        ({"method": "lapse"}, "unknown method 'lapse': expected plnd, relevance, activation, lape"),
        ({"scoring": "code"}, "unknown scoring 'code': expected paper or official"),
        (
            {"method": "lape", "scoring": "official"},
            "scoring=official is a way to measure with method=plnd, not with lape",
        ),
    ],
)
def test_settings_that_make_no_sense(settings, wording):
    """An unknown method or scoring, or a scoring of a method that has none, is refused."""
    with pytest.raises(PLNDError) as caught:
        DetectConfig(**settings)
    assert str(caught.value) == wording


@pytest.mark.parametrize(
    ("flags", "projections"),
    [
        (["--method", "lape"], ["gate_proj", "up_proj", "down_proj"]),
        (["--scoring", "official"], ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]),
    ],
)
def test_command_line(flags, projections, tmp_path):
    """`plnd detect --method` and `--scoring` are the settings of `detect`."""
    corpus, output = tmp_path / "en.txt", tmp_path / "en.scores.safetensors"
    corpus.write_text("A bird sang in the old garden and nobody listened to it.\n" * 2)
    arguments = ["--model", str(demo_model()), "--corpus", str(corpus), "--language", "en", "--output", str(output)]
    assert main(["detect", *arguments, "--min-length", "4", "--max-length", "8", "--device", "cpu", *flags]) == 0
    method = Scores.load(output).metadata["method"]
    assert method["projections"] == projections and flags[1] in (method["name"], method["scoring"])
