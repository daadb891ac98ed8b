"""What `tests/plnd/detection/test_tensor_parallel.py` lets several processes do with models spread over them.

`torchrun … tensor_parallel.py FOLDER FAMILY…` measures and switches off neurons of each family, spread and whole, and
writes what differs; the folder is where models are saved.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from plnd import NeuronSet, PLNDError, Scores, deactivate, deactivated, detect
from plnd.detection.config import DetectConfig
from plnd.models.families import FAMILIES
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from tiny import TINY, VARIANTS, KeepFloat64, logits, tiny_model

CONFIG = DetectConfig(language="xx", min_length=4, batch_size=2, qk="exact", max_length=16)
IDS = torch.tensor([[5, 6, 7, 80, 9, 11, 3, 90, 14], [9, 8, 7, 60, 5, 4, 3, 40, 6]])


def documents() -> list[list[int]]:
    """Three batches of random token ids."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, 96, 5 + n).tolist() for n in range(5)]


def fitting(name: str, folder: Path) -> Path:
    """A saved tiny model of a family whose heads and widths 4 processes can share."""
    make = (TINY | VARIANTS)[name]
    shape: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4}
    if "head_dim" not in make.keywords:
        shape["hidden_size"] = 32
    if name.startswith("gpt_neox"):
        shape["num_attention_heads"] = shape.pop("num_key_value_heads")
    torch.manual_seed(0)
    values = {**make.keywords, **shape}
    model = make.func(*make.args, **values)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.normal_(0, 0.3)
            if parameter.dim() == 1 and path.endswith("weight") and not name.startswith("gemma"):
                parameter.add_(1)
    model.double().save_pretrained(folder / name)
    return folder / name
