"""Deactivation switches exactly the named neurons off, both ways alike, and leaves no trace."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import distributed
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from plnd.deactivation import active, deactivate, deactivated
from plnd.demo_data import demo_model
from plnd.detection.run import DetectConfig, detect
from plnd.errors import FamilyError, ModelMismatchError, PLNDError
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from tiny import logits, tiny_model


def some_neurons(model, seed: int = 0, share: float = 0.2) -> NeuronSet:
    """A random share of every projection."""
    layout = Layout(model)
    generator = np.random.default_rng(seed)
    indices = {
        name: np.flatnonzero(generator.random(width) < share).astype(np.int32) for name, width in layout.widths.items()
    }
    importance = {name: np.ones(len(v), dtype=np.float32) for name, v in indices.items()}
    return NeuronSet(indices, importance, {"model": layout.description()})


def snapshot(model) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, state) -> bool:
    """Whether the model is bit for bit what the snapshot says."""
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


IDS = torch.tensor([[5, 9, 33, 7, 61, 4]])


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_equals_zeroing_by_hand(variant, mode):
    """The deactivated model is the model whose rows, biases and columns were zeroed in a copy."""
    model, by_hand = tiny_model(variant), tiny_model(variant)
    neurons = some_neurons(model)
    with torch.no_grad():
        for name, rows in neurons.items():
            target, index = Layout(by_hand).targets[name], torch.as_tensor(rows).long()
            weight, column = target.stored.data, target.projection.name in ("o_proj", "down_proj")
            if target.experts:
                expert, own = index // (target.width // target.experts), index % (target.width // target.experts)
                own = own if column else target.storage(own)
                if column == target.transposed:
                    weight[expert, own] = 0
                else:
                    weight[expert, :, own] = 0
                if not column and hasattr(target.plain, "gate_up_proj_bias"):
                    target.plain.gate_up_proj_bias[expert, own] = 0
                continue
            out_first = weight.T if target.transposed else weight
            if column:
                out_first[:, index] = 0
                continue
            out_first[target.storage(index)] = 0
            if target.plain.bias is not None:
                target.plain.bias[target.storage(index)] = 0
        plain = logits(model, IDS)
        with deactivated(model, neurons, mode=mode):
            masked = logits(model, IDS)
        torch.testing.assert_close(masked, logits(by_hand, IDS), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(masked, plain)
        assert torch.equal(logits(model, IDS), plain)


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_restores_bit_for_bit_also_after_an_exception_and_nested(family, mode):
    """Every parameter is what it was, whatever happens inside, for nested and repeated use."""
    model = tiny_model(family, dtype=torch.bfloat16)
    attributes = [(module, {**vars(module)}) for module in model.modules()]
    state, first, second = snapshot(model), some_neurons(model, 1), some_neurons(model, 2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), deactivated(model, first, mode=mode):
            with deactivated(model, second, mode=mode):
                pass
            raise ZeroDivisionError
        assert same(model, state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(vars(module) == before for module, before in attributes)


def test_only_the_named_neurons_change(family):
    """An unmasked row, column or bias entry keeps its bits while others are zero."""
    model = tiny_model(family)
    state, neurons = snapshot(model), some_neurons(model)
    with deactivated(model, neurons, mode="weights"):
        for name, target in Layout(model).targets.items():
            rows = neurons.indices.get(name, np.empty(0, dtype=int))
            keep = np.setdiff1d(np.arange(target.width), rows)
            original = Layout(_with_state(model, state)).targets[name].weight()
            column = target.projection.axis == "column"
            now = target.weight()
            assert torch.equal(now[:, keep] if column else now[keep], original[:, keep] if column else original[keep])
            assert not (now[:, rows] if column else now[rows]).any()


def _with_state(model, state):
    twin = type(model)(model.config).to(next(iter(state.values())).dtype)
    twin.load_state_dict(state)
    return twin


def test_refuses_another_model_before_changing_anything():
    """A mask made for another family, depth or width is named and nothing is edited."""
    model = tiny_model("llama")
    neurons, state = some_neurons(model), snapshot(model)
    for changed, word in (({"model_type": "gpt2"}, "gpt2"), ({"blocks": 9}, "9 blocks")):
        other = NeuronSet(neurons.indices, neurons.importance, {"model": {**neurons.model, **changed}})
        with pytest.raises(ModelMismatchError, match=word):
            deactivate(model, other)
    widths = {**neurons.widths, "1.k_proj": 4096}
    other = NeuronSet(neurons.indices, neurons.importance, {"model": {**neurons.model, "widths": widths}})
    with pytest.raises(ModelMismatchError, match="1.k_proj has 4096"):
        deactivate(model, other)
    assert same(model, state)


@pytest.mark.parametrize(
    "found, words", [("zh.safetensors", "zh.safetensors"), (Path("a.b"), "a.b"), (None, "NoneType")]
)
def test_what_is_no_set_is_refused(found, words):
    """A file's name where a set is expected, here and in the algebra of sets, is told how to become one."""
    model = tiny_model("llama")
    with pytest.raises(PLNDError, match=f"^{words}: expected a NeuronSet; read a file with plnd.NeuronSet.load"):
        deactivate(model, found)
    with pytest.raises(PLNDError, match=f"^{words}: expected a NeuronSet"):
        some_neurons(model) - found


def test_unknown_mode_is_refused():
    """A misspelt mode is an error, not a default."""
    model = tiny_model("llama")
    with pytest.raises(PLNDError, match="unknown mode 'weight'"):
        deactivate(model, some_neurons(model), mode="weight")  # type: ignore[arg-type]


def test_shared_weight_goes_through_activations():
    """A weight that two blocks share cannot be zeroed for one of them: hooks do it, and `weights` refuses."""
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    neurons = some_neurons(model).restrict(where=lambda block, projection: (block, projection) == (0, "down_proj"))
    with pytest.raises(PLNDError, match="0.down_proj shares its weight"):
        deactivate(model, neurons, mode="weights")
    twin = tiny_model("llama")
    twin.model.layers[1].mlp.down_proj.weight.data = model.model.layers[0].mlp.down_proj.weight.data.clone()
    with deactivated(model, neurons) as masked, deactivated(twin, neurons, mode="weights") as expected:
        torch.testing.assert_close(masked(IDS).logits, expected(IDS).logits)


def test_shared_module_is_refused():
    """One module in two blocks cannot be switched off in one of them by any means."""
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(FamilyError, match="shared with another block"):
        deactivate(model, some_neurons(model))


def test_lora_rows_are_off_with_their_delta():
    """Around a PEFT adapter the neuron of the adapted matrix is off, not only of the base weight."""
    from peft import LoraConfig, get_peft_model

    config = LlamaConfig(
        vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double().eval()
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft = get_peft_model(model, lora).double().eval()
    neurons = some_neurons(peft)
    with deactivated(peft, neurons):
        masked = peft(IDS).logits
    with deactivated(peft.merge_and_unload(), neurons, mode="weights") as merged:
        torch.testing.assert_close(masked, merged(IDS).logits)


def by_hand(model, *sets: NeuronSet):
    """A copy without these neurons."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for neurons in sets:
            for name, rows in neurons.items():
                target = Layout(twin).targets[name]
                for tensor in target.parameters():
                    tensor[target.position(torch.from_numpy(rows).long())] = 0
    return twin


CASTS = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "half and back": lambda m: m.half().float(),
    "bfloat16, then double": lambda m: m.to(torch.bfloat16).to(torch.float64),
    "new parameters": lambda m: [
        setattr(module, name, torch.nn.Parameter(p.detach().double()))
        for module in m.modules()
        for name, p in list(module.named_parameters(recurse=False))
    ],
    "new storage": lambda m: [setattr(p, "data", p.data.clone()) for p in m.parameters()],
}


@pytest.mark.parametrize("way", CASTS)
@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_what_is_cast_inside_comes_back_as_if_cast_outside(mode, way):
    """New numbers, new storage and new parameter objects inside the context: afterwards no entry is left at zero."""
    model = tiny_model("llama", torch.float32)
    twin = copy.deepcopy(model)
    CASTS[way](twin)
    with deactivated(model, some_neurons(model), mode=mode):
        CASTS[way](model)
    assert same(model, twin.state_dict()) and model.lm_head.weight.dtype == twin.lm_head.weight.dtype


@pytest.mark.parametrize("modes", [("weights", "weights"), ("weights", "activations"), ("activations", "weights")])
def test_contexts_end_in_any_order(modes):
    """The first one ends first: what the second holds stays off, also where both held it; ending twice does no harm."""
    model = tiny_model("llama")
    state, sets = snapshot(model), [some_neurons(model, 1, 0.4), some_neurons(model, 2, 0.4)]
    first, second = (deactivate(model, neurons, mode=mode) for neurons, mode in zip(sets, modes, strict=True))
    assert active(model) == (first, second)
    torch.testing.assert_close(model(IDS).logits, by_hand_of(state, *sets)(IDS).logits, rtol=1e-10, atol=1e-10)
    first.close()
    first()
    assert first.closed and active(model) == (second,)
    torch.testing.assert_close(model(IDS).logits, by_hand_of(state, sets[1])(IDS).logits, rtol=1e-10, atol=1e-10)
    second.close()
    assert same(model, state) and not active(model)
    assert not any("_plnd" in name for name, _ in model.named_buffers())


def by_hand_of(state, *sets: NeuronSet):
    """A fresh model with this state, without these neurons."""
    model = tiny_model("llama")
    model.load_state_dict(state)
    return by_hand(model, *sets)


def test_a_holder_has_one_deactivation_of_a_model():
    """What the same holder had off is back as the new one begins; others stay; if the new one is refused, all stay."""
    model = tiny_model("llama")
    state, (a, b, c) = snapshot(model), (some_neurons(model, seed) for seed in (1, 2, 3))
    other = deactivate(model, a)
    first = deactivate(model, b, holder="me")
    second = deactivate(torch.nn.DataParallel(model), c, holder="me")
    assert first.closed and active(model) == (other, second)
    torch.testing.assert_close(model(IDS).logits, by_hand_of(state, a, c)(IDS).logits, rtol=1e-10, atol=1e-10)
    with pytest.raises(PLNDError):
        deactivate(model, b, mode="no such", holder="me")  # type: ignore[arg-type]
    assert active(model) == (other, second)
    other.close()
    second.close()
    assert same(model, state)


LOADS = {
    "itself": lambda m, state: m.load_state_dict(state),
    "zeros": lambda m, state: m.load_state_dict({k: torch.zeros_like(v) for k, v in state.items()}),
    "zeros of both signs": lambda m, state: m.load_state_dict({k: v * 0 for k, v in state.items()}),
    "other numbers": lambda m, state: m.load_state_dict({k: v + 1 for k, v in state.items()}),
    "another dtype, assigned": lambda m, state: m.load_state_dict(
        {k: v.float() for k, v in state.items()}, assign=True
    ),
    "a part": lambda m, state: m.load_state_dict({k: v + 1 for k, v in state.items() if "mlp" in k}, strict=False),
    "one block": lambda m, state: m.model.layers[0].load_state_dict(
        {k[len("model.layers.1.") :]: v + 1 for k, v in state.items() if k.startswith("model.layers.1.")}
    ),
}


@pytest.mark.parametrize(("mode", "compiled"), [("weights", False), ("weights", True), ("activations", False)])
@pytest.mark.parametrize("way", LOADS)
def test_a_state_that_is_loaded_inside_is_the_model(way, mode, compiled):
    """The neurons stay off, whatever is loaded, zeros too, and afterwards the model is what was loaded."""
    model, twin = tiny_model("llama"), tiny_model("llama")
    neurons, state = some_neurons(model), snapshot(model)
    if compiled:
        model.model.layers[0].mlp.compile(backend="eager")
        model(IDS)
    with torch.no_grad(), deactivated(model, neurons, mode=mode):
        for one in (model, twin):
            LOADS[way](one, state)
        torch.testing.assert_close(model(IDS).logits, by_hand(twin, neurons)(IDS).logits)
    assert same(model, twin.state_dict()) and model.dtype == twin.dtype


def test_a_state_saved_and_loaded_inside_is_the_model_without_them():
    """As a trainer does with its best checkpoint: the neurons that were off as it was saved come back on exit."""
    model = tiny_model("llama")
    state, first, second = snapshot(model), some_neurons(model, 1), some_neurons(model, 2)
    with deactivated(model, first):
        saved = snapshot(model)
        with deactivated(model, second):
            model.load_state_dict(saved)
            expected = by_hand_of(state, first, second)(IDS).logits
            torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-10, atol=1e-10)
    assert same(model, state)


WRITES = {
    "an edit": lambda m, state: [p.add_(1) for p in m.parameters()],
    "an edit unseen": lambda m, state: [p.data.add_(1) for p in m.parameters()],
    "new parameters": lambda m, state: [
        setattr(module, name, torch.nn.Parameter(state[f"{path}.{name}"].clone()))
        for path, module in m.named_modules()
        for name, _ in list(module.named_parameters(recurse=False))
        if f"{path}.{name}" in state
    ],
}


@pytest.mark.parametrize("way", WRITES)
@torch.no_grad()
def test_what_is_written_inside_is_noticed(way):
    """Entries that somebody else writes to are on again: the next pass and the exit say so; what is written stays."""
    model = tiny_model("llama")
    twin, state = copy.deepcopy(model), snapshot(model)
    with pytest.raises(PLNDError, match=r"0\.\w+_proj: its weight was written to while its neurons"):
        with deactivated(model, some_neurons(model), mode="weights"):
            WRITES[way](model, state)
            if way != "an edit unseen":  # through .data: on exit only
                with pytest.raises(PLNDError, match="was written to"):
                    model(IDS)
    WRITES[way](twin, state)
    assert way != "new parameters" or same(model, twin.state_dict())
    assert not active(model) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_state_loaded_under_hooks_is_loaded():
    """Where activations are zeroed, the weights are free: the loaded model without its neurons."""
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    neurons = some_neurons(model)
    with deactivated(model, neurons, mode="activations"):
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(IDS).logits, by_hand(other, neurons)(IDS).logits, rtol=1e-10, atol=1e-10)
    assert same(model, other.state_dict())


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_training_inside_leaves_the_neurons_alone(mode):
    """An optimizer moves everything else: the neurons stay off meanwhile, and come back as they were."""
    model = tiny_model("llama").train()
    state, neurons = snapshot(model), some_neurons(model)
    with deactivated(model, neurons, mode=mode):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            model(IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        inside = model(IDS).logits
    for name, rows in neurons.items():
        target, before = Layout(model).targets[name], Layout(_with_state(model, state)).targets[name]
        for now, then in zip(target.parameters(), before.parameters(), strict=True):
            position = target.position(torch.from_numpy(rows).long())
            assert torch.equal(now[position], then[position])
            assert not torch.equal(now, then)
    torch.testing.assert_close(inside, by_hand(model, neurons)(IDS).logits, rtol=1e-8, atol=1e-8)


def lora(model):
    """A LoRA adapter that does something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)).eval()


def test_an_adapter_put_around_neurons_that_are_off_is_noticed():
    """Its delta is not zero and would switch them on again: the next pass says so, and the exit; all is back."""
    model = tiny_model("llama")
    twin = lora(tiny_model("llama"))
    with pytest.raises(PLNDError, match="0.down_proj has become"), deactivated(model, some_neurons(model)):
        tuned = lora(model)
        with pytest.raises(
            PLNDError, match="0.down_proj has become Linear, from Linear, while its neurons were switched"
        ):
            tuned(IDS)
    assert torch.equal(tuned(IDS).logits, twin(IDS).logits)


def test_an_adapter_merged_for_good_inside_is_noticed():
    """Wrapped, merged into `.data`, unwrapped, all before the next pass, in a frozen model: the pass says so."""
    model = tiny_model("llama").requires_grad_(False)
    with pytest.raises(PLNDError, match="0.down_proj: its weight was written to"):
        with deactivated(model, some_neurons(model), mode="weights"):
            merged = lora(model).merge_and_unload()
            with pytest.raises(PLNDError, match="0.down_proj: its weight was written to"):
                merged(IDS)


@torch.no_grad()
@pytest.mark.slow
def test_an_adapter_in_compiled_code_is_noticed():
    """Where a model is compiled inside, it is compiled anew as the adapter comes, which is then said as ever."""
    model = tiny_model("llama")
    model.model.layers = model.model.layers[:1]
    neurons = some_neurons(model)
    with pytest.raises(PLNDError, match="0.down_proj has become"), deactivated(model, neurons, mode="activations"):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits)
        lora(model)
        with pytest.raises(PLNDError, match="0.down_proj has become"):
            torch.compile(model, backend="eager")(IDS)


def test_an_adapter_taken_away_from_neurons_that_are_off_is_noticed():
    """Merged and kept, it stays off; merged and unloaded, the hooks are gone with it, which the next pass says."""
    tuned = lora(tiny_model("llama"))
    neurons = some_neurons(tuned)
    with pytest.raises(PLNDError, match="0.down_proj has become"), deactivated(tuned, neurons):
        before = tuned(IDS).logits
        tuned.merge_adapter()
        torch.testing.assert_close(tuned(IDS).logits, before)
        merged = tuned.merge_and_unload()
        with pytest.raises(PLNDError, match="down_proj has become Linear"):
            merged(IDS)
    torch.testing.assert_close(merged(IDS).logits, lora(tiny_model("llama"))(IDS).logits)


def test_two_threads_do_not_switch_off_one_model():
    """While one thread has neurons off, another is refused, and may later; the same thread may nest."""
    model = tiny_model("llama")
    state, neurons, said = snapshot(model), some_neurons(model), []

    def other() -> None:
        try:
            with deactivated(model, neurons):
                said.append("off")
        except PLNDError as error:
            said.append(str(error))

    def run() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with deactivated(model, neurons), deactivated(model, neurons):
        run()
    run()
    assert said[0].startswith("another thread (MainThread) works on this model") and said[1:] == ["off"]
    assert same(model, state)


def test_weights_made_under_inference_mode():
    """Such weights can only be written to in that mode: they are zeroed and restored there."""
    with torch.inference_mode():
        model = tiny_model("llama")
    state, neurons = snapshot(model), some_neurons(model)
    with torch.no_grad(), deactivated(model, neurons, mode="weights"):
        torch.testing.assert_close(model(IDS).logits, by_hand_of(state, neurons)(IDS).logits, rtol=1e-10, atol=1e-10)
    assert same(model, state) and model.lm_head.weight.is_inference()


def test_nothing_has_changed_if_a_weight_cannot_be_written():
    """The last of many fails: those before it are what they were, and nothing is left that would fail later."""
    model = tiny_model("llama")
    state, neurons = snapshot(model), some_neurons(model)
    model.model.layers[1].mlp.down_proj._plnd_down_proj_weight = "somebody else's"
    with pytest.raises(KeyError):
        deactivate(model, neurons, mode="weights")
    assert same(model, state) and not active(model)
    assert not any("_plnd" in name for name, _ in model.named_buffers())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    del model.model.layers[1].mlp.down_proj._plnd_down_proj_weight
    with deactivated(model, neurons):
        pass
    assert same(model, state)


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_copies_and_files_made_inside_keep_the_neurons_off(mode):
    """They have no record of their own: closing the original leaves them as they are, and they can be masked anew."""
    model = tiny_model("llama")
    state, neurons, file = snapshot(model), some_neurons(model), io.BytesIO()
    with deactivated(model, neurons, mode=mode):
        twin, masked = copy.deepcopy(model), model(IDS).logits
        torch.save(model, file)
    file.seek(0)
    for made in (twin, torch.load(file, weights_only=False)):
        assert torch.equal(made(IDS).logits, masked) and not active(made)
        with deactivated(made, neurons):
            torch.testing.assert_close(made(IDS).logits, masked)
        assert torch.equal(made(IDS).logits, masked)
    assert same(model, state)


@pytest.mark.parametrize("mode", ["weights", "activations"])
def test_a_model_is_not_kept_alive(mode):
    """Records go with the model."""
    model = tiny_model("llama")
    off, gone = deactivate(model, some_neurons(model), mode=mode), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    off.close()


def test_expanded_weights_go_through_activations():
    """Where several columns are one in memory, zeroing one would zero all."""
    model = tiny_model("llama")
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.data = weight.data[:, :1].expand_as(weight)
    twin = tiny_model("llama")
    twin.model.layers[0].mlp.down_proj.weight.data = weight.data.clone()
    neurons = some_neurons(model)
    with deactivated(model, neurons):
        torch.testing.assert_close(model(IDS).logits, by_hand(twin, neurons)(IDS).logits, rtol=1e-10, atol=1e-10)


def test_pruned_weights_go_through_activations():
    """A weight that is computed anew in every pass cannot be zeroed: hooks do it."""
    model = tiny_model("llama")
    plain = model.model.layers[0].mlp.down_proj
    torch.nn.utils.prune.l1_unstructured(plain, "weight", 0.3)
    twin = tiny_model("llama")
    torch.nn.utils.prune.l1_unstructured(twin.model.layers[0].mlp.down_proj, "weight", 0.3)
    torch.nn.utils.prune.remove(twin.model.layers[0].mlp.down_proj, "weight")
    neurons = some_neurons(model)
    with pytest.raises(PLNDError, match="0.down_proj is .* a weight that is computed anew"):
        deactivate(model, neurons, mode="weights")
    with deactivated(model, neurons):
        torch.testing.assert_close(model(IDS).logits, by_hand(twin, neurons)(IDS).logits)


def test_offloaded_inside_is_said():
    """What accelerate has taken off the device cannot be restored there: one line."""
    from accelerate import cpu_offload

    model = tiny_model("llama")
    with pytest.raises(PLNDError, match="0.q_proj: its weight .* was moved to the meta device"):
        with deactivated(model, some_neurons(model), mode="weights"):
            masked = model(IDS).logits
            cpu_offload(model, torch.device("cpu"))
            assert torch.equal(model(IDS).logits, masked)


def test_gradients_of_a_pass_that_saw_other_weights_are_refused():
    """A pass inside and its backward pass outside: torch says that weights have changed since."""
    model = tiny_model("llama")
    with deactivated(model, some_neurons(model), mode="weights"):
        loss = model(IDS, labels=IDS).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


COMPILED = {
    "whole": lambda m: torch.compile(m, backend="eager"),
    "in place": lambda m: (m.compile(backend="eager"), m)[1],
    "a part": lambda m: (setattr(m.model.layers[0], "mlp", torch.compile(m.model.layers[0].mlp, backend="eager")), m)[
        1
    ],
    "a block": lambda m: (m.model.layers.__setitem__(0, torch.compile(m.model.layers[0], backend="eager")), m)[1],
    "a module in place": lambda m: (m.model.layers[0].mlp.down_proj.compile(backend="eager"), m)[1],
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.slow) if how == "in place" else how for how in COMPILED]
)
@torch.no_grad()
@pytest.mark.slow
def test_compiled_code_heeds_what_is_off(how):
    """A model, or a part, that was compiled and run before: both modes switch off, and on again."""
    plain = tiny_model("llama")
    plain.model.layers = plain.model.layers[:1]
    neurons = some_neurons(plain)
    expected, masked = plain(IDS).logits, by_hand(plain, neurons)(IDS).logits
    model = COMPILED[how](copy.deepcopy(plain))
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-10, atol=1e-10)
    for mode in ("activations", "weights"):
        with deactivated(model, neurons, mode=mode):
            torch.testing.assert_close(model(IDS).logits, masked, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wrap", ["data parallel", "pipeline", "ddp"])
def test_wrapped_models_are_unwrapped(wrap, one_process):
    """Deactivation and detection find the model inside."""
    from transformers import pipeline

    model = tiny_model("llama")
    neurons = some_neurons(model)
    if wrap == "pipeline":
        tokenizer = AutoTokenizer.from_pretrained(demo_model())
        wrapped = pipeline("text-generation", model=model, tokenizer=tokenizer)
    else:
        wrapped = {"data parallel": torch.nn.DataParallel, "ddp": torch.nn.parallel.DistributedDataParallel}[wrap](
            model
        )
    with deactivated(wrapped, neurons):
        assert torch.equal(model(IDS).logits, by_hand_of(model.state_dict(), neurons)(IDS).logits)
    config = DetectConfig(language="xx", min_length=2, max_length=8)
    found, expected = (detect(m, [IDS[0].tolist()], config) for m in (wrapped, model))
    assert all(np.array_equal(found.mean[name], values) for name, values in expected.mean.items())


def test_what_is_no_transformers_model_is_said():
    """One line instead of an AttributeError."""
    with pytest.raises(PLNDError, match="Linear: expected a transformers model, or one inside a pipeline"):
        Layout(torch.nn.Linear(2, 2))


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["tensor-parallel", "fully sharded"])
def test_weights_spread_over_processes_are_refused(how, one_process):
    """DTensors, of tensor parallelism or FSDP: deactivation, detection and tuning name the weight."""
    from peft import get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    import peft_plnd

    model, mesh = tiny_model("llama"), init_device_mesh("cpu", (1,))
    neurons = some_neurons(model)
    if how == "fully sharded":
        fully_shard(model, mesh=mesh)
    else:
        parallelize_module(model.model.layers[1].mlp, mesh, {"gate_proj": ColwiseParallel()})
    config = peft_plnd.NeuronSelectConfig(neurons={"up_proj": {"out": [1]}})
    for use in (
        lambda: deactivate(model, neurons),
        lambda: detect(model, [IDS[0].tolist()], DetectConfig(language="xx")),
        lambda: get_peft_model(model, config),
    ):
        with pytest.raises(PLNDError, match=r"\w+ is spread over processes \(tensor-parallel or FSDP\)"):
            use()
