"""Masked evaluation of a tiny model of every row of the families table that predicts next tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lm_eval_plnd.model import PLNDLM
from plnd.deactivation import deactivate
from plnd.models.families import FAMILIES
from tiny import MASKED, SCALED, TINY, tiny_model
from tuning import make_mask

DECODERS = sorted(name for name in (TINY | MASKED | SCALED).keys() & FAMILIES.keys() if not FAMILIES[name].masked)
REQUESTS = [
    Instance(request_type="loglikelihood", doc={}, arguments=("w9 w40 w7", text), idx=0) for text in (" w33", " w5 w60")
]
SETTINGS = {"device": "cpu", "batch_size": 2, "max_length": 32}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of as many made-up words as a tiny model has."""
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(97)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", bos_token="w1", eos_token="w2")


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_a_masked_row_is_hf_without_the_neurons(name, tmp_path):
    """Log-likelihoods are those of `hf` on a copy whose neurons, of experts too, are zero, and not the whole one's."""
    model, tokenizer = tiny_model(name, torch.float32), words()
    make_mask(model, tmp_path / "mask.safetensors", experts=True)
    without = copy.deepcopy(model)
    deactivate(without, make_mask(without, tmp_path / "again.safetensors", experts=True))
    lm = PLNDLM(model, mask=str(tmp_path / "mask.safetensors"), tokenizer=tokenizer, **SETTINGS)
    found = lm.loglikelihood(REQUESTS, disable_tqdm=True)
    assert found == HFLM(without, tokenizer=tokenizer, **SETTINGS).loglikelihood(REQUESTS, disable_tqdm=True)
    assert found != HFLM(model, tokenizer=tokenizer, **SETTINGS).loglikelihood(REQUESTS, disable_tqdm=True)
