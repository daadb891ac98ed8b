"""A response cache goes by content: what changes an answer changes the name, whatever it was loaded from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lm_eval_plnd.identity import answers_digest
from lm_eval_plnd.model import PLNDLM
from plnd.demo_data import demo_model
from plnd.errors import PLNDError
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet

REQUESTS = [Instance(request_type="loglikelihood", doc={}, arguments=("Ein Satz", " und noch einer"), idx=0)]


@pytest.fixture(scope="module")
def tokenizer():
    """The demo model's."""
    return AutoTokenizer.from_pretrained(demo_model())


def llama(seed: int = 0, **config) -> LlamaForCausalLM:
    """A random model; another seed gives another of the same shape, which prints the same."""
    torch.manual_seed(seed)
    shape = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5
    )
    return LlamaForCausalLM(LlamaConfig(vocab_size=16000, **shape, **config)).eval()


def lora(model: LlamaForCausalLM, seed: int, **config) -> PeftModel:
    """The model with a random adapter."""
    torch.manual_seed(seed)
    return get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False, **config)
    ).eval()


def some(model: torch.nn.Module) -> NeuronSet:
    """A few neurons of `down_proj`."""
    description = Layout(model).description()
    indices = {"0.down_proj": np.arange(5, dtype=np.int32)}
    return NeuronSet(indices, {"0.down_proj": np.ones(5, np.float32)}, {"model": description, "language": "xx"})


def disabled(model: PeftModel) -> PeftModel:
    """The model with its adapter off."""
    model.base_model.disable_adapter_layers()
    return model


def merged(model: PeftModel) -> PeftModel:
    """The model with its adapter in the weights."""
    model.merge_adapter()
    return model


def with_inv_freq(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with other frequencies, which no file holds."""
    model.model.rotary_emb.inv_freq *= 2
    return model


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "a": llama,
    "other weights": lambda: llama(1),
    "other rotation": lambda: llama(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
    "an unsaved buffer": lambda: with_inv_freq(llama()),
    "eager": lambda: llama(attn_implementation="eager"),
    "bfloat16": lambda: llama().bfloat16(),
    "adapter": lambda: lora(llama(), 1),
    "retrained adapter": lambda: lora(llama(), 2),
    "adapter of another scale": lambda: lora(llama(), 1, lora_alpha=64),
    "adapter that is off": lambda: disabled(lora(llama(), 1)),
    "adapter that is merged": lambda: merged(lora(llama(), 1)),
}


def test_models_are_named_by_content(tokenizer):
    """Everything that makes a model answer otherwise gives another name; an equal model gives the same one."""
    names = {name: answers_digest(make(), tokenizer, None, {}) for name, make in MODELS.items()}
    assert len(set(names.values())) == len(MODELS)
    assert {name: answers_digest(make(), tokenizer, None, {}) for name, make in MODELS.items()} == names


def test_the_name_is_that_of_tokenizer_mask_and_settings_too(tokenizer):
    """Another tokenizer, chat template, mask or argument of `hf` gives another name; using the tokenizer does not."""
    (other, ending, side, chat), model = (AutoTokenizer.from_pretrained(demo_model()) for _ in range(4)), llama()
    chat.chat_template = "{{ messages[0]['content'] }}"
    other.add_tokens(["zzz"])
    ending.eos_token = ending.convert_ids_to_tokens(50)  # a token that it had
    side.padding_side = {"left": "right", "right": "left"}[side.padding_side]
    names = {
        answers_digest(model, tokenizer, "mask", {}),
        answers_digest(model, other, "mask", {}),
        answers_digest(model, ending, "mask", {}),
        answers_digest(model, side, "mask", {}),
        answers_digest(model, chat, "mask", {}),
        answers_digest(model, tokenizer, "another", {}),
        answers_digest(model, tokenizer, "mask", {"max_length": 64}),
        answers_digest(model, tokenizer, "mask", {"dtype": torch.float32, "tokenizer": tokenizer}),
    }
    assert len(names) == 8
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=3)
    assert answers_digest(model, tokenizer, "mask", {}) in names


def test_two_models_of_one_shape_share_no_answers(tokenizer, tmp_path):
    """Two model objects that print the same, one cache file: each gets its own answers, and again from the cache."""
    found = {}
    for turn in range(2):
        for seed in (0, 1):
            model = llama(seed)
            lm = PLNDLM(model, mask=some(model), tokenizer=tokenizer, max_length=64)
            if not turn:
                found[seed] = lm.loglikelihood(REQUESTS)
            else:
                lm._model_call = None  # everything is in the cache by now
            cached = CachingLM(lm, str(tmp_path / "cache.db"))
            assert cached.loglikelihood(REQUESTS) == found[seed]
            cached.dbdict.close()
    assert found[0] != found[1]


def test_an_adapter_retrained_into_its_folder_is_another(tokenizer, tmp_path):
    """The same folder with other weights is not served what the earlier adapter answered."""
    base, adapter = tmp_path / "base", str(tmp_path / "adapter")
    llama().save_pretrained(base)
    tokenizer.save_pretrained(base)
    found = []
    for seed in (1, 2):
        lora(LlamaForCausalLM.from_pretrained(base), seed).save_pretrained(adapter)
        lm = PLNDLM(str(base), peft=adapter, device="cpu", dtype="float32", max_length=64)
        expected = lm.loglikelihood(REQUESTS)
        cached = CachingLM(lm, str(tmp_path / "cache.db"))
        found.append(cached.loglikelihood(REQUESTS))
        assert found[-1] == expected
        cached.dbdict.close()
    assert found[0] != found[1]


def test_what_cannot_be_read_is_not_cached(tokenizer):
    """An offloaded weight, a foreign hook and an argument of unknown content: one line that says to leave it out."""
    hooked, offloaded = llama(), llama()
    hooked.model.norm.register_forward_hook(lambda module, args, output: output * 2)
    offloaded.lm_head.to("meta")
    for model, settings, words in (
        (hooked, {}, "model.norm has a hook of .*test_identity"),
        (offloaded, {}, "lm_head.weight is offloaded"),
        (llama(), {"thing": object()}, r"argument thing \(object\) cannot be told"),
    ):
        with pytest.raises(PLNDError, match=f"--use_cache: .*{words}.*leave it out"):
            answers_digest(model, tokenizer, None, settings)
