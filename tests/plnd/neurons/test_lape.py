"""Selection by activation probability entropy, against the published `identify.py` written out in torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import plnd
from plnd.commands.main import main
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import ModelMismatchError, PLNDError
from plnd.models.layout import Layout
from plnd.neurons.regions import Regions
from plnd.neurons.scores import Scores
from tiny import tiny_model

WIDTH, BLOCKS, LANGUAGES = 40, 2, ("en", "zh", "ru")
FFN = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def description() -> dict:
    """Of a tiny Llama."""
    return Layout(tiny_model("llama")).description()


def made_up(description: dict, probability: np.ndarray, language: str, method: str = "lape") -> Scores:
    """Scores with these means, [blocks, width]."""
    mean = {f"{b}.{p}": probability[b].astype(np.float32) for b in range(BLOCKS) for p in FFN}
    rank = {address: np.argsort(np.argsort(-values)).astype(np.int32) for address, values in mean.items()}
    corpus = {"source": None, "sha256": "", "documents": 1, "tokens": 1, "max_length": 1, "skipped": {}}
    metadata = {
        "format": "plnd.scores",
        "version": 1,
        "plnd": plnd.__version__,
        "model": description,
        "language": language,
        "corpus": corpus,
        "method": {"name": method, "projections": list(FFN)},
        "dtype": "float32",
    }
    return Scores(mean, mean, rank, metadata)


def some_scores(description: dict, seed: int = 0) -> list[Scores]:
    """Random probabilities, some neurons far more probable in one language, some never active."""
    random = np.random.default_rng(seed)
    probability = random.uniform(0, 0.5, (len(LANGUAGES), BLOCKS, WIDTH))
    probability[:, :, :3] = 0
    for n in range(len(LANGUAGES)):
        probability[n, :, 5 + 4 * n : 9 + 4 * n] = random.uniform(0.7, 1, (BLOCKS, 4))
    return [made_up(description, p, language) for p, language in zip(probability, LANGUAGES, strict=True)]


def identify(scores: list[Scores], top_rate: float) -> list[list[tuple[int, int]]]:
    """`activation()` of RUCAIBox/Language-Specific-Neurons, identify.py: (layer, neuron) of each language."""
    over_zero = torch.stack(
        [torch.stack([torch.tensor(s.mean[f"{b}.up_proj"]) for b in range(BLOCKS)]) for s in scores]
    )
    activation_probs = over_zero.permute(1, 2, 0).double()
    normed_activation_probs = activation_probs / activation_probs.sum(dim=-1, keepdim=True)
    normed_activation_probs[torch.isnan(normed_activation_probs)] = 0
    log_probs = torch.where(normed_activation_probs > 0, normed_activation_probs.log(), 0)
    entropy = -torch.sum(normed_activation_probs * log_probs, dim=-1)
    flattened_probs = activation_probs.flatten()
    top_prob_value = flattened_probs.kthvalue(round(len(flattened_probs) * 0.95)).values.item()
    top_position = (activation_probs > top_prob_value).sum(dim=-1)
    entropy[top_position == 0] = torch.inf
    flattened_entropy = entropy.flatten()
    top_entropy_value = round(len(flattened_entropy) * top_rate)
    _, index = flattened_entropy.topk(top_entropy_value, largest=False)
    row_index, col_index = index // entropy.size(1), index % entropy.size(1)
    selected_probs = activation_probs[row_index, col_index].transpose(0, 1)
    activation_bar = flattened_probs.kthvalue(round(len(flattened_probs) * 0.95)).values.item()
    lang, indice = torch.where(selected_probs > activation_bar)
    merged_index = torch.stack((row_index, col_index), dim=-1)
    return [sorted(map(tuple, merged_index[indice[lang == n]].tolist())) for n in range(len(scores))]


def pairs(neurons: plnd.NeuronSet, projection: str = "up_proj") -> list[tuple[int, int]]:
    """(block, index) of the neurons of one projection."""
    return [(int(a.split(".")[0]), int(k)) for a, ks in neurons.items() if a.endswith(projection) for k in ks]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_rate", [0.01, 0.05, 0.1])
def test_the_papers_rule(description, seed, top_rate):
    """The same neurons as the published code, for every language, and the same in all three projections."""
    scores = some_scores(description, seed)
    sets = plnd.lape(scores, top_rate=top_rate)
    assert [pairs(neurons) for neurons in sets] == identify(scores, top_rate)
    for neurons in sets:
        assert pairs(neurons, "gate_proj") == pairs(neurons, "up_proj") == pairs(neurons, "down_proj")
    assert top_rate == 0.01 or sum(map(len, sets)) > 0


def test_the_papers_rate_is_the_default(description):
    """1 % of all neurons."""
    scores = some_scores(description)
    assert plnd.lape(scores) == plnd.lape(scores, top_rate=0.01)
    assert plnd.lape(scores)[0].metadata["rule"]["top_rate"] == 0.01


def test_a_fraction_goes_to_each_language(description):
    """Of lowest entropy among those that belong to it, so that sets of all languages and methods can be of one size."""
    scores = some_scores(description)
    everywhere = identify(scores, 1.0)  # what the filter leaves out is above no bar
    every = plnd.lape(scores, fraction=1, projections=["down_proj"])
    some = plnd.lape(scores, fraction=3 / 80, projections=["down_proj"])
    for n in range(len(LANGUAGES)):
        assert pairs(every[n], "down_proj") == everywhere[n]
        assert len(some[n]) == 3 and some[n] == every[n].top(3)


def test_what_is_at_the_bar_is_not_above_it(description):
    """The bar is one of the probabilities: a neuron that has just this one in a language is not of that language, and
    one that has no larger one in any does not pass the filter."""
    probability = np.full((2, BLOCKS, WIDTH), 0.1)
    probability[1, 0, :7] = 0.95
    probability[0, 0, 0] = probability[0, 0, 9] = 0.9  # the 152nd of 160 values, which is the bar, and the 153rd
    sets = plnd.lape([made_up(description, p, x) for p, x in zip(probability, "ab", strict=True)], top_rate=7 / 80)
    assert [pairs(neurons) for neurons in sets] == [[], [(0, k) for k in range(7)]]
    assert sets[0].metadata.rule["bar"] == np.float32(0.9)


def test_of_equal_entropies_the_first_are_taken(description):
    """Twelve neurons are active in one language alone, of entropy 0; of twelve others between them the first three."""
    probability = np.zeros((6, BLOCKS, WIDTH))
    probability[0, 0, :24] = 0.9  # 24 of 480 values, above the quantile
    probability[1, 0, 1:24:2] = 0.3
    sets = plnd.lape([made_up(description, p, str(n)) for n, p in enumerate(probability)], top_rate=15 / 80)
    assert pairs(sets[0]) == [(0, k) for k in sorted([*range(0, 24, 2), 1, 3, 5])]


def test_no_importance_is_below_zero(description, tmp_path):
    """The entropy of a neuron that is the same in five languages is rounded to more than ln 5; its set can be read."""
    probability = np.full((5, BLOCKS, WIDTH), 0.1)
    probability[:, 0, 0] = 0.95
    neurons = plnd.lape([made_up(description, p, str(n)) for n, p in enumerate(probability)], top_rate=1)[0]
    neurons.save(tmp_path / "set")
    assert pairs(plnd.NeuronSet.load(tmp_path / "set")) == [(0, 0)]


def test_importance_falls_with_entropy(description):
    """ln(languages) - entropy: what is active in one language only has the largest, and `top` takes it first."""
    scores = some_scores(description)
    alone = np.zeros((BLOCKS, WIDTH), np.float32)
    alone[1, 20] = 1
    scores = [made_up(description, np.where(alone > 0, alone, s.mean["0.up_proj"]), "x") for s in scores[:1]] + [
        made_up(description, np.where(alone > 0, 0, s.mean["0.up_proj"]), "y") for s in scores[1:]
    ]
    best = plnd.lape(scores, fraction=0.1, projections=["up_proj"])[0].top(1)
    assert pairs(best) == [(1, 20)]
    assert best.importance["1.up_proj"][0] == pytest.approx(np.log(3), rel=1e-6)


def test_projections_and_regions(description):
    """Only the projections and blocks that were asked for, and quantiles of what is there."""
    scores = some_scores(description)
    neurons = plnd.lape(scores, fraction=0.1, projections=["up_proj"], regions=Regions.parse("under", 1, 0))[1]
    assert set(neurons.indices) == {"0.up_proj"}
    assert neurons.metadata["rule"]["projections"] == ["up_proj"]


def test_metadata_names_the_other_languages(description, tmp_path):
    """The rule, its quantiles and the scores that it compared with are in the artifact, which reads back."""
    scores = some_scores(description)
    neurons = plnd.lape(scores, fraction=0.1)[1]
    neurons.save(tmp_path / "zh.safetensors")
    rule = plnd.NeuronSet.load(tmp_path / "zh.safetensors").metadata["rule"]
    assert rule["name"] == "lape" and rule["fraction"] == 0.1 and 0 < rule["filter"] == rule["bar"] < 1
    assert [other["language"] for other in rule["against"]] == ["en", "ru"]
    assert rule["against"][0]["sha256"] == scores[0].digest
    assert neurons.metadata["language"] == "zh" and neurons.metadata["scores_sha256"] == scores[1].digest


def refusal(function, *args, **kwargs) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(PLNDError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_what_is_refused(description):
    """One language, both rules, a rate that makes no sense, other methods and a mixture of methods."""
    scores = some_scores(description)
    assert "expected scores of two or more, found 1" in refusal(plnd.lape, scores[:1])
    assert "found both" in refusal(plnd.lape, scores, top_rate=0.1, fraction=0.1)
    assert refusal(plnd.lape, scores, fraction=0) == "fraction=0: expected a number above 0 and at most 1"
    assert refusal(plnd.lape, scores, top_rate=2) == "top_rate=2: expected a number above 0 and at most 1"
    other = made_up(description, np.ones((BLOCKS, WIDTH)), "en", "plnd")
    said = refusal(plnd.lape, [scores[0], other])
    assert "detected with method=plnd, and entropy is taken of activations" in said and "--share instead" in said
    other = made_up(description, np.ones((BLOCKS, WIDTH)), "en", "activation")
    assert "some with method=activation" in refusal(plnd.lape, [scores[0], other])
    assert "these scores cover gate_proj, up_proj, down_proj" in refusal(plnd.lape, scores, projections=["q_proj"])
    said = scores[0].metadata
    longer = replace(scores[1], metadata=scores[1].metadata.replaced(corpus={**said.corpus, "max_length": 9}))
    assert refusal(plnd.lape, [scores[0], longer]).startswith(
        "max_length is 1 in the scores of en and 9 in those of zh"
    )
    twice = [replace(one, metadata=one.metadata.replaced(corpus={**said.corpus, "sha256": "a"})) for one in scores[:2]]
    assert "are of one corpus, the same documents" in refusal(plnd.lape, twice)


def test_scores_of_another_model_are_refused(description):
    """Entropy is over one model's neurons."""
    scores = some_scores(description)
    stranger = made_up({**description, "model_type": "mistral"}, np.ones((BLOCKS, WIDTH)), "de")
    with pytest.raises(ModelMismatchError, match="^scores 2: made for mistral"):
        plnd.lape([scores[0], stranger])


# command line


@pytest.fixture
def files(description, tmp_path: Path) -> list[str]:
    """Scores artifacts of three languages."""
    paths = [str(tmp_path / f"{language}.scores.safetensors") for language in LANGUAGES]
    for path, scores in zip(paths, some_scores(description), strict=True):
        scores.save(path)
    return paths


def test_select_against(description, files, tmp_path, capsys):
    """`plnd select --against` is `plnd.lape`."""
    output = str(tmp_path / "en.safetensors")
    assert main(["select", files[0], "--fraction", "0.05", "--output", output, "--against", *files[1:]]) == 0
    assert plnd.NeuronSet.load(output) == plnd.lape(some_scores(description), fraction=0.05)[0]
    main(["select", files[0], "--top-rate", "0.1", "--against", *files[1:], "--output", output])
    assert plnd.NeuronSet.load(output) == plnd.lape(some_scores(description), top_rate=0.1)[0]
    capsys.readouterr()
    assert main(["show", output, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rule"]["name"] == "lape"
    assert main(["show", output]) == 0


@pytest.mark.parametrize(
    ("rest", "wording"),
    [
        (["--top-rate", "0.1"], "plnd select: --top-rate is a rule over languages: name the scores of the others with"),
        (
            ["--top-k", "5", "--against"],
            "plnd select: --against compares languages: its rules are --count, --share",
        ),
    ],
)
def test_rules_that_do_not_go_together(files, tmp_path, capsys, rest, wording):
    """One line that says which do."""
    more = files[1:] if rest[-1] == "--against" else []
    assert main(["select", files[0], "--output", str(tmp_path / "x.safetensors"), *rest, *more]) == 2
    assert capsys.readouterr().err.startswith(wording)


def test_from_detection_to_a_set():
    """Scores as `detect` gives them are what `lape` takes."""
    model = tiny_model("gpt2", torch.float32)
    scores = [
        detect(model, [list(range(start, start + 30))], DetectConfig(str(start), method="lape", min_length=1))
        for start in (3, 33, 63)
    ]
    for neurons in plnd.lape(scores, fraction=0.02):
        assert set(pairs(neurons)) == set(pairs(neurons, "down_proj"))
        assert not any(address.endswith("gate_proj") for address in neurons.indices)
