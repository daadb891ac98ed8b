"""Detection is the loop over documents one at a time, however they are batched, padded, interrupted and resumed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import plnd
from detecting import CONFIG, LENGTHS, MANY, SMALL, leave_a_checkpoint, selected, some_documents
from handmade import logs_over_median, ranks
from plnd.deactivation import deactivated
from plnd.detection.measures.paper import PaperImportance
from plnd.detection.observer import SITES, Observer
from plnd.detection.run import detect
from plnd.errors import FamilyError, PLNDError
from plnd.importance.attention import attention_importance
from plnd.models.layout import Layout
from plnd.neurons.scores import Scores
from plnd.probing.float64 import KeepFloat64
from tiny import tiny_model


def one_at_a_time(model, documents, qk: str) -> dict[str, np.ndarray]:
    """Importance by address, [documents, width], each document alone in its pass."""
    layout, rows = Layout(model), {}

    def sink(block, site, importance):
        for projection in SITES[site]:
            if f"{block}.{projection}" in layout.targets:
                rows.setdefault(f"{block}.{projection}", []).append(importance[0].numpy())

    for document in documents:
        ids = torch.tensor([document])
        with torch.no_grad(), Observer(layout, PaperImportance(qk), sink, [(0, len(document))]).attached():
            layout.forward(ids, torch.ones_like(ids))
    return {name: np.stack(values) for name, values in rows.items()}


# five numbers


@pytest.mark.parametrize("qk", ["exact", *(pytest.param(x, marks=pytest.mark.slow) for x in ("first_order", "off"))])
def test_five_numbers_are_those_of_one_document_at_a_time(family, qk):
    """Minimum, mean, worst rank and both logs equal those of a loop over documents, for every projection and family."""
    model, documents = tiny_model(family), some_documents()
    with KeepFloat64():
        scores = detect(model, documents, replace(CONFIG, qk=qk))
        expected = one_at_a_time(model, documents, qk)
    left_out = (".q_proj", ".k_proj") if qk == "off" else ()
    assert scores.minimum.keys() == expected.keys() == {a for a in Layout(model).widths if not a.endswith(left_out)}
    for name, matrix in expected.items():
        np.testing.assert_allclose(scores.minimum[name], matrix.min(0), rtol=1e-4, atol=1e-5 * matrix.max())
        np.testing.assert_allclose(scores.mean[name], matrix.mean(0), rtol=1e-4, atol=1e-5 * matrix.max())
        assert np.array_equal(scores.worst_rank[name], np.max([ranks(row) for row in matrix], axis=0)), name
        logs = np.array([logs_over_median(row) for row in matrix])
        np.testing.assert_allclose(scores.mean_log[name], logs.mean(0), atol=2e-3)
        np.testing.assert_allclose(scores.std_log[name], logs.std(0, ddof=1), atol=2e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_batches_do_not_change_what_is_selected(batch_size):
    """Neither the batch size nor the order of documents changes a selected set."""
    model, documents = tiny_model("llama"), some_documents()
    first = detect(model, documents, CONFIG)
    other = detect(model, documents[::-1], replace(CONFIG, batch_size=batch_size))
    assert selected(first) == selected(other)
    for name in first.minimum:
        np.testing.assert_allclose(first.minimum[name], other.minimum[name], rtol=1e-4, atol=1e-6)


def test_documents_do_matter():
    """The negative of the tests above: another document changes the numbers."""
    model, documents = tiny_model("llama"), some_documents()
    first, other = (detect(model, d, CONFIG) for d in (documents, documents[:-1]))
    assert selected(first) != selected(other)


def test_dropout_is_off_and_the_training_flag_is_put_back():
    """A model in training mode is scored as in evaluation mode, and is back in it afterwards, also after an error."""
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    evaluated = detect(model, some_documents(), CONFIG)
    model.train()
    trained = detect(model, some_documents(), CONFIG)
    assert trained.digest == evaluated.digest
    assert model.training and all(module.training for module in model.modules())
    with pytest.raises(ZeroDivisionError):
        detect(model, (1 // 0 for _ in range(1)), CONFIG)
    assert model.training
    detect(model.eval(), some_documents(), CONFIG)
    assert not model.training


def test_detection_leaves_the_model_as_it_was():
    """Parameters and output are bit for bit what they were, and no gradient was recorded."""
    model, ids = tiny_model("llama"), torch.tensor(some_documents()[:1])
    before = model(ids).logits
    detect(model, some_documents(), CONFIG)
    assert torch.equal(model(ids).logits, before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# metadata


def test_metadata_says_what_was_done(tmp_path):
    """Model, language, corpus, method and dtype are in the artifact, with the digest of the token ids."""
    tiny_model("llama", torch.float32).save_pretrained(tmp_path / "model")
    model = plnd.load_model(str(tmp_path / "model"), device="cpu")
    documents = [[4], *some_documents()]
    scores = detect(model, documents, CONFIG, source="where/from")
    digest = hashlib.sha256()
    for document in documents[1:]:
        digest.update(np.array([len(document), *document], "<i8").tobytes())
    assert scores.metadata == {
        "format": "plnd.scores",
        "version": 3,
        "plnd": plnd.__version__,
        "model": {
            "name": str(tmp_path / "model"),
            "revision": None,
            "model_type": "llama",
            "blocks": 2,
            "widths": Layout(model).widths,
            "units": Layout(model).units,
        },
        "language": "xx",
        "corpus": {
            "source": "where/from",
            "sha256": digest.hexdigest(),
            "documents": 7,
            "tokens": sum(LENGTHS),
            "max_length": 512,
            "skipped": {"shorter than 4 tokens": [0]},
            "skipped_counts": {"shorter than 4 tokens": 1},
        },
        "method": {
            "name": "plnd",
            "scoring": "paper",
            "projections": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "qk": "exact",
            "epsilon": None,
            "min_length": 4,
            "batch_size": 3,
            "log_floor": 1e-3,
        },
        "dtype": "float32",
        "quantisation": None,
    }
    scores.save(tmp_path / "scores")
    assert Scores.load(tmp_path / "scores").metadata == scores.metadata


def test_projections_that_were_not_scored_are_not_claimed():
    """Without queries and keys the metadata names five projections, and the model's widths still name all."""
    scores = detect(tiny_model("llama"), some_documents(), replace(CONFIG, qk="off"))
    assert scores.metadata["method"]["projections"] == ["v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert "0.q_proj" in scores.metadata["model"]["widths"] and "0.q_proj" not in scores.minimum


def test_scores_are_float32_whatever_the_model_is():
    """The artifact's types do not follow the model's."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        scores = detect(tiny_model("llama", dtype), some_documents(), CONFIG)
        assert scores.metadata["dtype"] == str(dtype).removeprefix("torch.")
        assert {v.dtype for part in (scores.minimum, scores.mean) for v in part.values()} == {np.dtype(np.float32)}
        assert {v.dtype for v in scores.worst_rank.values()} == {np.dtype(np.int32)}


# a rule that is known ahead


def with_known_rule(family: str, qk: str, share: float = 0.5) -> tuple[Scores, Scores, float]:
    """Scores without and with a known rule, which a share of the rows of q_proj in the first block does not pass."""
    model, documents = tiny_model(family), some_documents([4 + n % 7 for n in range(11)])
    config = replace(CONFIG, qk=qk, batch_size=2)
    full = detect(model, documents, config)
    epsilon = float(np.quantile(full.minimum["0.q_proj"], share))
    return full, detect(model, documents, replace(config, epsilon=epsilon)), epsilon


@pytest.mark.parametrize("qk", ["exact", "first_order"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_known_rule_selects_the_same_neurons(family, qk, eager_checkpoints):
    """What is not measured again could not have passed; all other projections are scored as ever."""
    full, known, epsilon = with_known_rule(family, qk)
    for value in (epsilon, 1.5 * epsilon):
        assert known.select(epsilon=value) == full.select(epsilon=value)
        assert 0 < len(known.select(epsilon=value, projections=["q_proj", "k_proj"]))
    for name, minimum in full.minimum.items():
        passes = minimum >= epsilon
        if not name.endswith(("q_proj", "k_proj")):
            assert np.array_equal(known.mean[name], full.mean[name])
            assert np.array_equal(known.worst_rank[name], full.worst_rank[name])
            passes[:] = True
        for part, found in ((full.minimum, known.minimum), (full.mean, known.mean)):
            np.testing.assert_allclose(found[name], np.where(passes, part[name], 0), rtol=1e-4)


def test_known_rule_saves_work(monkeypatch, eager_checkpoints):
    """From the second window on, only rows that passed so far are asked for."""
    asked = []

    def spy(trace, algorithm, alive):
        asked.append(None if alive is None else sum(int(rows.sum()) for rows in alive))
        return attention_importance(trace, algorithm, alive)

    model = tiny_model("llama")
    rows = sum(Layout(model).widths[f"0.{name}"] for name in ("q_proj", "k_proj"))
    full = detect(model, MANY, replace(CONFIG, batch_size=1))
    monkeypatch.setattr("plnd.detection.measures.paper.attention_importance", spy)
    epsilon = float(np.quantile(full.minimum["0.q_proj"], 0.5))
    known = detect(model, MANY, replace(CONFIG, batch_size=1, epsilon=epsilon))
    of_first_block = asked[::2]
    assert of_first_block[:4] == [None] * 4
    assert rows > of_first_block[4] >= of_first_block[8]
    assert of_first_block[4:8] == of_first_block[4:5] * 4
    assert of_first_block[8] >= sum((known.minimum[f"0.{name}"] >= epsilon).sum() for name in ("q_proj", "k_proj"))


def test_known_rule_leaves_no_ranks_of_queries_and_keys():
    """A rank or a median among neurons that were not all measured means nothing: all have the last, and logs of 0."""
    _, known, epsilon = with_known_rule("llama", "exact")
    assert known.metadata["method"]["epsilon"] == epsilon
    for name, ranks_of in known.worst_rank.items():
        assert (ranks_of == len(ranks_of) - 1).all() == name.endswith(("q_proj", "k_proj"))
    for logs in (known.mean_log, known.std_log):
        for name, values in logs.items():
            assert (values == 0).all() == name.endswith(("q_proj", "k_proj"))


@pytest.mark.parametrize("after", [4, 7, 9])
def test_known_rule_resumes(tmp_path, eager_checkpoints, after):
    """What need not be measured again is known again after an interruption."""
    model, path = tiny_model("llama", torch.float32), tmp_path / "checkpoint"
    full = detect(model, MANY, replace(SMALL, qk="exact"))
    config = replace(SMALL, qk="exact", epsilon=float(np.quantile(full.minimum["1.k_proj"], 0.5)))
    expected = detect(model, MANY, config)
    leave_a_checkpoint(model, path, after=after, config=config)
    assert detect(model, MANY, config, checkpoint=path, resume=True).digest == expected.digest


# weights that are elsewhere


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_offloaded_weights_are_read(tmp_path, family, offload):
    """Of a model whose weights come to the device for each pass only, every number is that of the model itself."""
    from accelerate import cpu_offload, disk_offload

    model = tiny_model(family, torch.float32)
    expected = detect(model, some_documents(), CONFIG)
    if offload == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    found = detect(model, some_documents(), CONFIG, checkpoint=tmp_path / "checkpoint")
    assert found.digest == expected.digest
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_model_in_several_places(tmp_path):
    """Blocks that a device map puts elsewhere than the embedding give what they give beside it."""
    from transformers import AutoModelForCausalLM

    model = tiny_model("llama", torch.float32)
    model.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "disk", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert {p.device.type for p in spread.model.layers[0].parameters()} == {"meta"}
    spread.config._name_or_path = model.config._name_or_path
    assert detect(spread, some_documents(), CONFIG).digest == detect(model, some_documents(), CONFIG).digest


def test_a_model_without_weights_is_refused():
    """A skeleton has no importance."""
    with pytest.raises(FamilyError, match="its weight is on the meta device: load the model with its weights"):
        detect(tiny_model("llama").to("meta"), some_documents(), CONFIG)


# models that something was done to


@pytest.mark.parametrize("part", ["mlp", "self_attn"])
def test_compiled_models_are_measured(part):
    """Parts that were compiled and run before, in place or wrapped, have the scores of the plain model."""
    model, documents = tiny_model("llama"), some_documents()
    expected = detect(model, documents, CONFIG)
    for block in model.model.layers:
        setattr(block, part, torch.compile(getattr(block, part), backend="eager"))
        block.mlp.down_proj.compile(backend="eager")
    with torch.no_grad():
        model(torch.tensor([documents[0]]))
    found = detect(model, documents, CONFIG)
    assert all(np.array_equal(found.mean[name], values) for name, values in expected.mean.items())


@pytest.mark.parametrize("kind", ["lora", "neuron_select"])
def test_what_an_adapter_adds_is_measured(kind):
    """Importances with an adapter are those of the model into which it was merged; switched off, those of the base."""
    from peft import LoraConfig, get_peft_model

    import peft_plnd

    base = detect(tiny_model("llama"), some_documents(), CONFIG)
    torch.manual_seed(0)
    names = ["q_proj", "o_proj", "down_proj"]
    config = {
        "lora": LoraConfig(r=2, target_modules=names, init_lora_weights=False),
        "neuron_select": peft_plnd.NeuronSelectConfig(neurons={n: {"in": [1, 5]} for n in names}, init_weights=False),
    }[kind]
    tuned = get_peft_model(tiny_model("llama"), config).eval()
    found = detect(tuned, some_documents(), CONFIG)
    with tuned.disable_adapter():
        off = detect(tuned, some_documents(), CONFIG)
    tuned.merge_adapter()
    still_there = detect(tuned, some_documents(), CONFIG)
    merged = detect(tuned.merge_and_unload(), some_documents(), CONFIG)
    for name, values in merged.mean.items():
        np.testing.assert_allclose(found.mean[name], values, rtol=1e-5, atol=1e-7)
        assert np.array_equal(still_there.mean[name], values)
        np.testing.assert_allclose(off.mean[name], base.mean[name], rtol=1e-6)
    assert not np.allclose(merged.mean["0.down_proj"], base.mean["0.down_proj"], rtol=1e-2)


def test_an_adapter_that_does_more_is_refused():
    """DoRA scales the weight too: which matrix acts is not what the closed forms would take."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["down_proj"], use_dora=True)
    with pytest.raises(FamilyError, match="0.down_proj: adapter 'default' .* adds to the weight and more: merge it"):
        detect(get_peft_model(tiny_model("llama"), config), some_documents(), CONFIG)


@pytest.mark.parametrize("scoring", ["paper", "official"])
@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_a_model_with_neurons_off_is_measured(mode, scoring):
    """Inside `deactivated` the scores are those of a model whose neurons' weights are zero, queries and keys too."""
    model, twin, config = tiny_model("llama"), tiny_model("llama"), replace(CONFIG, scoring=scoring)
    neurons = detect(model, some_documents(), CONFIG).select(fraction=0.2)
    for name, rows in neurons.items():
        target = Layout(twin).targets[name]
        for tensor in target.parameters():
            tensor[target.position(torch.from_numpy(rows).long())] = 0
    with deactivated(model, neurons, mode=mode):
        found = detect(model, some_documents(), config)
    off = {"sha256": neurons.digest, "language": "xx", "neurons": len(neurons)}
    assert found.metadata["deactivated"] == [off]  # and whatever is selected from them says so too
    assert found.select(top_k=1).metadata["deactivated"] == [off]
    assert "deactivated" not in detect(model, some_documents(), config).metadata
    for name, values in detect(twin, some_documents(), config).mean.items():
        np.testing.assert_allclose(found.mean[name], values, rtol=1e-5, atol=1e-6 * values.max())


def test_an_adapter_that_learns_a_prompt_is_refused():
    """Its tokens stand before every text, and the forward pass of detection would be without them."""
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    tuned = get_peft_model(tiny_model("llama", torch.float32), config)
    with pytest.raises(PLNDError, match="PREFIX_TUNING.* learned tokens before every text"):
        detect(tuned, [[5, 9, 33]], CONFIG)
