"""The families table: where it applies, where it stands aside with a warning, and what it refuses."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    __version__,
)

from plnd.addresses import ATTENTION_PROJECTIONS, PROJECTIONS, block_order
from plnd.deactivation import deactivated
from plnd.detection.config import DetectConfig
from plnd.detection.oracle import sequential
from plnd.detection.run import detect
from plnd.errors import FamilyError
from plnd.models.families import FAMILIES, Rotation
from plnd.models.layout import Layout, find_family
from tiny import GEMMA, SHAPE, tiny_model, unlisted_model

CONFIG = DetectConfig(min_length=4, qk="exact")
DOCUMENTS = [[5, 9, 33, 7, 61, 4], [8, 8, 70, 12, 3, 9, 41]]


def codegen():
    """A family that the table does not list, with modules of its own."""
    return CodeGenForCausalLM(
        CodeGenConfig(vocab_size=97, n_embd=24, n_layer=2, n_head=4, n_inner=40, rotary_dim=4, n_positions=64)
    )


# unlisted families


def test_unlisted_family_with_llama_modules_works_with_a_warning():
    """Seed-OSS is taken as Llama, says so once, and its importances are those of the oracle."""
    model = unlisted_model("cwm")
    with pytest.warns(UserWarning, match="model family 'cwm' is not in the table; its modules match Llama's layout"):
        scores = detect(model, DOCUMENTS, CONFIG)
    assert scores.metadata["model"]["model_type"] == "cwm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for address, at in (("1.down_proj", "sublayer"), ("0.v_proj", "sublayer")):
            expected = torch.stack([sequential(model, torch.tensor(d), address, at=at) for d in DOCUMENTS])
            torch.testing.assert_close(
                torch.from_numpy(scores.mean[address]), expected.mean(0).float(), rtol=1e-4, atol=1e-5
            )
        model.set_attn_implementation("eager")
        for address in ("0.q_proj", "1.k_proj"):
            expected = torch.stack([sequential(model, torch.tensor(d), address, at="attention") for d in DOCUMENTS])
            torch.testing.assert_close(
                torch.from_numpy(scores.mean[address]), expected.mean(0).float(), rtol=1e-3, atol=1e-5
            )
        neurons, ids = scores.select(top_k=12), torch.tensor(DOCUMENTS[:1])
        before = model(ids).logits
        with deactivated(model, neurons):
            assert not torch.allclose(model(ids).logits, before)


def test_listed_families_do_not_warn(family):
    """The negative: a row of the table applies in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_family(tiny_model(family)) is FAMILIES[family]


def test_another_layout_is_refused():
    """Modules of other names are an error that names the table and what drafts a row."""
    with pytest.raises(FamilyError) as caught:
        Layout(codegen())
    assert str(caught.value) == (
        "model family 'codegen' is not in the families table (`plnd families` prints it) and its blocks are not laid"
        " out as Llama's: `plnd probe` says which of its projections are exact and drafts a row (docs/families.md)"
    )


@pytest.mark.parametrize(
    "kind, field, value",
    [
        ("opt", "do_layer_norm_before", False),
        ("falcon", "alibi", True),
        ("cohere", "use_qk_norm", True),
        ("bloom", "slow_but_exact", True),
        ("gpt2", "add_cross_attention", True),
    ],
)
def test_a_configuration_without_an_exact_form_is_refused(kind, field, value):
    """A listed family is refused, never approximated in silence, where the configuration changes the formulas."""
    model = tiny_model(kind)
    setattr(model.config, field, value)
    with pytest.raises(FamilyError, match=f"model family '{kind}' with {field}={value}: its exact form is not known"):
        Layout(model)


def test_the_language_model_of_a_multimodal_one_is_found():
    """Gemma 3 with vision has its blocks below `language_model`; what is scored is the text model."""
    config = Gemma3Config(
        text_config=GEMMA,
        vision_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).double().eval()
    layout = Layout(model)
    assert layout.family is FAMILIES["gemma3_text"] and len(layout.blocks) == 2
    scores = detect(model, DOCUMENTS, CONFIG)
    expected = torch.stack([sequential(model, torch.tensor(d), "1.up_proj", at="sublayer") for d in DOCUMENTS])
    torch.testing.assert_close(
        torch.from_numpy(scores.mean["1.up_proj"]), expected.mean(0).float(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.add_module("post_feedforward_layernorm", nn.LayerNorm(24)),
        lambda block: block.self_attn.add_module("q_norm", nn.LayerNorm(8)),
        lambda block: block.mlp.add_module("extra", nn.Linear(24, 24)),
        lambda block: delattr(block.mlp, "gate_proj"),
    ],
    ids=["post-norm", "head norm", "another matrix", "ungated"],
)
def test_nearly_llama_is_not_llama(change):
    """One module more or less (a norm that the formulas would miss) is another layout."""
    model = unlisted_model("cwm")
    change(model.model.layers[0])
    with pytest.raises(FamilyError, match="not in the families table"):
        Layout(model)


@pytest.mark.parametrize("kind", ["ernie4_5"])
def test_another_rotation_is_refused_for_queries_and_keys(kind, monkeypatch):
    """Llama's modules with neighbouring channels rotated, or none in a block: Q and K are refused, the rest is not."""
    shape = {**SHAPE, "num_hidden_layers": 4, "intermediate_size": 40}
    config = CONFIG_MAPPING[kind](**shape, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    row = FAMILIES[kind]
    monkeypatch.setitem(FAMILIES, kind, replace(row, stacks=(replace(row.stacks[0], rotation=Rotation()),)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for qk in ("exact", "first_order"):
            with pytest.raises(
                FamilyError,
                match=r"block \d: attention is not what the families table says of ernie4_5.* detect with --qk off",
            ):
                detect(model, DOCUMENTS, replace(CONFIG, qk=qk))
        found = detect(model, DOCUMENTS, replace(CONFIG, qk="off")).mean["3.v_proj"]
        expected = torch.stack([sequential(model, torch.tensor(d), "3.v_proj", at="sublayer") for d in DOCUMENTS])
        torch.testing.assert_close(torch.from_numpy(found), expected.mean(0).float(), rtol=1e-4, atol=1e-6)


def test_attention_is_proven_on_the_first_document_that_says_something(monkeypatch):
    """A document without finite numbers proves nothing: another rotation is still refused on the next one."""
    shape = {**SHAPE, "intermediate_size": 40}
    config = CONFIG_MAPPING["ernie4_5"](**shape, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[96] = torch.inf
    row = FAMILIES["ernie4_5"]
    monkeypatch.setitem(FAMILIES, "ernie4_5", replace(row, stacks=(replace(row.stacks[0], rotation=Rotation()),)))
    with pytest.raises(FamilyError, match="attention is not what the families table says"):
        detect(model, [[96] * 30, *DOCUMENTS], replace(CONFIG, batch_size=1))


@pytest.mark.parametrize(
    "dtype",
    [*(pytest.param(x, marks=pytest.mark.slow) for x in (torch.float64, torch.float32)), torch.bfloat16, torch.float16],
    ids=str,
)
def test_rounding_is_no_other_rotation(family, dtype):
    """The negative: listed families are scored in every dtype, also on a document that is not finite."""
    model = tiny_model(family, dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight[96] = torch.inf
    long = torch.randint(3, 96, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    skipped = detect(model, [[96] * 8, *DOCUMENTS, long], CONFIG).metadata["corpus"]["skipped"]
    assert skipped == {"non-finite importance": [0]}


def test_a_model_that_cannot_use_sdpa_is_refused_for_queries_and_keys():
    """SDPA would leave out what such a model's own attention does (sinks, say), and score another model."""
    model = tiny_model("llama", attention="eager")
    model._supports_sdpa = False
    with pytest.raises(FamilyError, match="LlamaForCausalLM cannot run with PyTorch's SDPA, .* detect with --qk off"):
        detect(model, DOCUMENTS, CONFIG)
    assert detect(model, DOCUMENTS, replace(CONFIG, qk="off")).minimum


def test_a_listed_family_without_its_modules_is_refused():
    """Where a listed model lacks a projection, or has something else there, the address and the module are named."""
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(FamilyError, match=r"block 1 has no 'mlp\.up_proj', where the families table has it for llama"):
        Layout(model).widths  # noqa: B018
    model.model.layers[1].mlp.up_proj = nn.Embedding(24, 40)
    with pytest.raises(FamilyError, match=r"1\.up_proj: Embedding is not a linear module that plnd knows"):
        Layout(model).widths  # noqa: B018


def _activation(stack):
    """The path of the non-linearity, where it is a part of the model."""
    return [path for path in (stack.activation,) if path and not path.startswith("torch.")]


def _paths(stack):
    """Every path below a block that a kind of blocks names, but those that tell the kind."""
    yield from dict.fromkeys(p.module for p in stack.projections)
    yield from (path for path in (stack.attention, stack.head_dim, stack.feed_forward, stack.experts) if path)
    yield from _activation(stack)
    yield from (path for path in (stack.factor, stack.rotation and stack.rotation.when, *stack.beside) if path)
    for norm in (stack.query_norm, stack.key_norm, stack.attention_norm, stack.feed_forward_norm):
        if norm:
            yield from (norm.module, f"{norm.module}.{norm.eps}", f"{norm.module}.weight")


def test_a_path_that_is_not_there_is_one_clear_error(family):
    """Whatever the row names and a release of transformers has elsewhere: row, path and release, no AttributeError."""
    last = [block for block in Layout(tiny_model(family)).blocks if not block.name.endswith(".shared")][-1]
    for path in _paths(last.stack):
        if any(f"{telling}.".startswith(f"{path}.") for telling in last.stack.having):
            continue
        model = tiny_model(family)
        block = next(block for block in Layout(model).blocks if block.name == last.name)
        parent, _, name = path.rpartition(".")
        delattr(block.at(parent) if parent else block.module, name)
        with pytest.raises(FamilyError) as caught:
            detect(model, DOCUMENTS, CONFIG)
        message = str(caught.value)
        assert re.match(rf"block {re.escape(block.name)} has no '{re.escape(path)}\b.*', where the families", message)
        assert f"has it for {family} (transformers {__version__})" in message


def test_blocks_elsewhere_are_one_clear_error():
    """The same of the list of blocks."""
    model = tiny_model("gpt2")
    model.transformer.layers = model.transformer.h
    del model.transformer.h
    with pytest.raises(FamilyError, match=rf"GPT2Model has no 'h', where .* for gpt2 \(transformers {__version__}\)"):
        Layout(model)


@pytest.mark.parametrize(
    "kind, name", [("llama", "position_embeddings"), ("bloom", "alibi"), ("bloom", "attention_mask")]
)
def test_arguments_of_another_release_are_one_clear_error(kind, name):
    """The same of what an attention module receives: rotations, biases and masks."""
    model = tiny_model(kind)
    block = Layout(model).blocks[0]
    attention = block.at(block.stack.attention)
    whole = attention.forward

    def renamed(module, args, kwargs):
        return args, {("renamed" if key == name else key): value for key, value in kwargs.items()}

    attention.register_forward_pre_hook(renamed, with_kwargs=True)
    attention.forward = lambda *args, **kwargs: whole(
        *args, **{(name if key == "renamed" else key): value for key, value in kwargs.items()}
    )
    with pytest.raises(FamilyError, match=rf"block 0: the call of {block.stack.attention} has no '{name}', where the"):
        detect(model, DOCUMENTS, CONFIG)


# what the formulas need


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Softplus()], ids=["sigmoid", "softplus"])
def test_an_activation_that_does_not_map_zero_to_zero_is_refused(family, activation):
    """Eq. 5 needs act(0) = 0, so a model without it is not scored."""
    model = tiny_model(family)
    block = next(b for b in Layout(model).blocks if b.name.endswith("1") and b.stack.activation)
    if block.stack.gating != "product" or not list(_activation(block.stack)):
        return  # the row has another form, or a function that is no part of the model
    path, _, name = block.stack.activation.rpartition(".")
    setattr(block.module.get_submodule(path), name, activation)
    with pytest.raises(
        FamilyError, match=r"block (encoder\.)?1: the activation \w+\(.*\) does not map 0 to 0, which eq. 5 needs"
    ):
        detect(model, DOCUMENTS, CONFIG)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.GELU()], ids=["relu", "tanh", "gelu"])
def test_other_activations_are_scored(activation):
    """The negative: whatever maps 0 to 0 may be there."""
    model = tiny_model("llama")
    for block in model.model.layers:
        block.mlp.act_fn = activation
    assert detect(model, DOCUMENTS, CONFIG).minimum


# widths


def test_widths_are_those_of_the_modules(family):
    """Each projection is as wide as its part of the module's weight, and has the configuration's heads."""
    model = tiny_model(family)
    layout = Layout(model)
    for name, target in layout.targets.items():
        out, into = target.weight().shape
        assert target.width == (into if target.projection.axis == "column" else out), name
    assert list(layout.widths) == [f"{b.name}.{p.name}" for b in layout.blocks for p in b.stack.projections]
    assert layout.description()["widths"] == layout.widths
    config = model.config
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    expected = {"q_proj": heads, "o_proj": heads, "k_proj": groups, "v_proj": groups}
    units = {a: expected.get(t.projection.name, t.experts) for a, t in layout.targets.items()}
    assert layout.units == {name: count for name, count in units.items() if count is not None}


def test_widths_do_not_come_from_the_config():
    """Gemma 3's query matrix has heads x head_dim rows, not hidden_size; key and value follow the groups."""
    widths = Layout(tiny_model("gemma3_text")).widths
    assert (widths["0.q_proj"], widths["0.o_proj"], widths["0.k_proj"], widths["0.v_proj"]) == (32, 32, 16, 16)
    assert tiny_model("gemma3_text").config.hidden_size == 24


@pytest.mark.parametrize("how", ["module", "weight"])
def test_widths_of_a_pruned_model(how):
    """Where one block was pruned, by new modules or by new weights in the old ones, that block is narrower."""
    model, keep = tiny_model("llama"), torch.arange(0, 40, 2)
    mlp = model.model.layers[1].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        old = getattr(mlp, name)
        weight = nn.Parameter(old.weight.data[:, keep] if name == "down_proj" else old.weight.data[keep])
        if how == "module":
            setattr(mlp, name, nn.Linear(*reversed(weight.shape), bias=False, dtype=torch.float64))
        getattr(mlp, name).weight = weight
        if how == "weight" and name != "down_proj":
            getattr(mlp, name).bias = nn.Parameter(old.bias.data[keep])
    widths = Layout(model).widths
    assert (widths["0.down_proj"], widths["1.down_proj"], widths["1.gate_proj"]) == (40, 20, 20)
    scores = detect(model, DOCUMENTS, CONFIG)
    assert len(scores.minimum["1.up_proj"]) == 20
    expected = torch.stack([sequential(model, torch.tensor(d), "1.up_proj") for d in DOCUMENTS]).mean(0)
    torch.testing.assert_close(torch.from_numpy(scores.mean["1.up_proj"]), expected.float(), rtol=1e-4, atol=1e-5)


def test_widths_of_a_resized_output_projection():
    """An o_proj of fewer columns is narrower, whatever the number of heads says."""
    model = tiny_model("llama")
    model.model.layers[0].self_attn.o_proj = nn.Linear(16, 24, bias=False)
    assert Layout(model).widths["0.o_proj"] == 16 and Layout(model).widths["1.o_proj"] == 48


def test_widths_are_seen_through_an_adapter():
    """A PEFT adapter around the model changes no width."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama", torch.float32)
    before = Layout(model).widths
    assert Layout(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))).widths == before


def test_widths_of_a_model_without_weights():
    """On the meta device, as `plnd verify` sees a model, the widths are the same."""
    config = tiny_model("gpt2").config
    with torch.device("meta"):
        skeleton = type(tiny_model("gpt2"))(config)
    assert Layout(skeleton).widths == Layout(tiny_model("gpt2")).widths


# the table itself


def test_rows_are_complete_and_in_order(family):
    """Projections are known, each named once, in the usual order; cross-attention alone has no feed-forward.

    Gemma 4 norms values, and takes keys from other blocks or from what makes values: those are in no row.
    """
    row = FAMILIES[family]
    assert row.name == family
    for stack in row.stacks:
        names = [p.name for p in stack.projections]
        assert names == sorted(set(names), key=PROJECTIONS.index)
        missing = set(PROJECTIONS) - set(names) - (set() if stack.attention else set(ATTENTION_PROJECTIONS))
        if family == "gemma4_text":
            assert "v_proj" in missing
            missing -= {"k_proj", "v_proj"}
        assert missing <= ({"gate_proj"} if stack.feed_forward else set(PROJECTIONS[4:]))


def test_every_row_of_a_fused_module_belongs_to_one_neuron(variant):
    """The projections of a fused module share out its rows without a gap or an overlap; gates of heads have none."""
    owners: dict[tuple[int, str], list[torch.Tensor]] = {}
    for target in Layout(tiny_model(variant)).targets.values():
        if target.projection.axis == "row":
            each = torch.arange(target.width // (target.experts or 1))
            key = (id(target.module), target.projection.parameter, target.projection.fused == "gated")
            owners.setdefault(key, []).append(target.storage(each))
    for (_, _, gated), rows in owners.items():
        together = torch.cat(rows).sort().values.tolist()
        assert together == (
            [r for r in range(2 * len(together)) if r // 8 % 2 == 0] if gated else list(range(len(together)))
        )


def test_rows_fused_by_group():
    """GPT-NeoX: head by head, its query, key and value; Falcon: group by group, its queries, the key, the value."""
    targets = Layout(tiny_model("gpt_neox")).targets  # 3 heads of 8
    assert targets["0.k_proj"].storage(torch.tensor([0, 7, 8])).tolist() == [8, 15, 24 + 8]
    targets = Layout(tiny_model("falcon")).targets  # 6 heads of 4 on 2 groups
    assert targets["0.q_proj"].storage(torch.tensor([11, 12])).tolist() == [11, 20]
    assert targets["0.k_proj"].storage(torch.tensor([0, 4])).tolist() == [12, 32]
    assert targets["0.v_proj"].storage(torch.tensor([3, 4])).tolist() == [19, 36]


def test_neurons_of_experts():
    """Neuron e·width + k is neuron k of expert e, in its rows and in its column."""
    model = tiny_model("mixtral")
    targets, experts = Layout(model).targets, model.model.layers[0].mlp.experts
    assert targets["0.gate_proj"].width == 4 * 40
    torch.testing.assert_close(targets["0.gate_proj"].weight()[2 * 40 + 5], experts.gate_up_proj[2, 5])
    torch.testing.assert_close(targets["0.up_proj"].weight()[2 * 40 + 5], experts.gate_up_proj[2, 40 + 5])
    torch.testing.assert_close(targets["0.down_proj"].weight()[:, 2 * 40 + 5], experts.down_proj[2, :, 5])
    places = {
        "gate": experts.gate_up_proj[2, 5],
        "up": experts.gate_up_proj[2, 40 + 5],
        "down": experts.down_proj[2, :, 5],
    }
    for name, expected in places.items():  # where they are switched off
        target = targets[f"0.{name}_proj"]
        (stored,) = target.parameters()
        assert torch.equal(stored[target.position(torch.tensor([2 * 40 + 5]))][0], expected)


def test_blocks_are_in_order():
    """Numbers as numbers, the encoder before the decoder, cross-attention after its block."""
    names = ["decoder.10", "encoder.2", "decoder.2.cross", "decoder.2", "encoder.10"]
    expected = ["encoder.2", "encoder.10", "decoder.2", "decoder.2.cross", "decoder.10"]
    assert sorted(names, key=block_order) == expected
    assert sorted(["10", "9"], key=block_order) == ["9", "10"]
