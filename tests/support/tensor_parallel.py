"""What `tests/plnd/detection/test_processes.py` lets two processes do with a tensor-parallel model: be refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from peft_plnd import NeuronSelectConfig
from plnd import NeuronSet, PLNDError, deactivate, detect


def main(folder: Path) -> None:
    """Writes what each use says, one line each, to a file of this process."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", tp_plan="auto")
    neurons = NeuronSet.load(folder / "mask.safetensors")
    uses: list[Callable[[], object]] = [
        lambda: deactivate(model, neurons),
        lambda: deactivate(model, neurons, mode="activations"),
        lambda: detect(model, [[5, 6, 7] * 20]),
        lambda: get_peft_model(model, NeuronSelectConfig(neurons={"q_proj": {"out": [1]}})),
    ]
    said = []
    for use in uses:
        try:
            said.append(f"no refusal: {use()!r}")
        except PLNDError as error:
            said.append(str(error))
    rank = torch.distributed.get_rank()
    (folder / f"said{rank}").write_text("\n".join(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
