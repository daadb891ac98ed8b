"""What `tests/plnd/detection/test_tensor_parallel.py` lets several processes do with models that are spread over them.

`torchrun … tensor_parallel.py FOLDER FAMILY…` saves a tiny model of each family, loads it whole and spread, measures
and switches off neurons in both, and leaves what it found in `FOLDER/FAMILY.RANK.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.utils import logging

from plnd import PLNDError, Scores, deactivated, detect, detect_shard, merge
from plnd.detection import run as detection
from plnd.detection.config import DetectConfig
from plnd.detection.measures.choice import measure_of
from plnd.detection.observer import Observer
from plnd.errors import FamilyError
from plnd.models.layout import Layout
from plnd.models.loading import load_model
from plnd.models.spread import local
from plnd.probing.float64 import KeepFloat64
from tiny import MASKED, TINY, VARIANTS, random_weights

CONFIG = DetectConfig(language="xx", min_length=4, batch_size=2, qk="exact", max_length=16)
IDS = torch.tensor([[5, 6, 7, 80, 9, 11, 3, 90, 14], [9, 8, 7, 60, 5, 4, 3, 40, 6]])
DETECT = ["detect", "--language", "en", "--min-length", "4", "--batch-size", "2", "--dtype", "float64"]
TEXTS = ["The cat sat on the mat.", "Rain fell on the old town all night."]
METHODS = {
    "first order": replace(CONFIG, qk="first_order"),
    "epsilon": replace(CONFIG, epsilon=0.5),
    "official": replace(CONFIG, scoring="official"),
    "activation": replace(CONFIG, method="activation"),
    "lape": replace(CONFIG, method="lape"),
    "relevance": replace(CONFIG, method="relevance"),
}


class Collectives(TorchDispatchMode):
    """Counts what the processes say to each other, in functions of `torch.distributed` and within DTensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D102
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it is seen again, as what is done to its parts
        communicates = func.namespace in ("c10d", "_c10d_functional")
        self.count += communicates and "wait" not in func.__name__ and "barrier" not in func.__name__
        return func(*args, **(kwargs or {}))


def documents() -> list[list[int]]:
    """Random token ids, three batches of them."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, 96, 5 + n).tolist() for n in range(5)]


def tiny(name: str, *, eight_heads: bool) -> PreTrainedModel:
    """A tiny model of a family, with eight query heads and four key-value heads where that is asked for."""
    make, shape = (TINY | VARIANTS | MASKED)[name], {}
    if eight_heads:
        shape = {"num_attention_heads": 4} if name == "gpt_neox" else dict(num_attention_heads=8, num_key_value_heads=4)
        shape |= {} if "head_dim" in make.keywords else {"hidden_size": 32}
    if name in (
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe",
        "mistral4",
    ):  # two processes cannot share nine neurons of an expert
        shape["moe_intermediate_size"] = 10
    return random_weights(name, make.func(*make.args, **{**make.keywords, **shape}))


def difference(one: Scores, other: Scores) -> float:
    """Largest difference of an importance, relative to the largest of its projection."""
    pairs = [(x[name], y[name]) for x, y in ((one.minimum, other.minimum), (one.mean, other.mean)) for name in x]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs if np.abs(a).max())


def weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """A copy of what this process has of each."""
    return [local(parameter.detach()).clone() for parameter in model.parameters()]


def collectives(model: PreTrainedModel) -> dict[str, int]:
    """How many there are in a pass: the model's own, with its neurons being measured, and so on a second batch."""
    counts, layout, mask = {}, Layout(model, spread=True), torch.ones_like(IDS)

    def counted(name: str, run: Callable[[], None]) -> None:
        with torch.no_grad(), Collectives() as collectives:
            run()
        counts[name] = collectives.count

    counted("plain", lambda: layout.forward(IDS, mask))
    observer = Observer(layout, measure_of(CONFIG), lambda *_: None, spans=[(0, IDS.shape[1])] * len(IDS))
    with observer.attached():
        for name in ("first", "second"):
            assert observer.meeting is not None
            observer.meeting.begin(IDS)
            counted(name, lambda: observer.measure.run(layout, IDS, mask))
            list(observer.meeting.end())
        counted("meeting", lambda: observer.run(IDS, mask))
    return counts


def compared(whole: PreTrainedModel, spread: PreTrainedModel) -> dict[str, Any]:
    """Importances and masked logits of a model that is spread against those of one that is not."""
    expected, found = detect(whole, documents(), CONFIG), detect(spread, documents(), CONFIG)
    assert list(expected.minimum) == list(found.minimum)
    neurons = expected.select(fraction=0.1)
    before, masked = weights(spread), {}
    with torch.no_grad():
        plain = float((whole(input_ids=IDS).logits - spread(input_ids=IDS).logits).abs().max())
        with deactivated(whole, neurons):
            reference = whole(input_ids=IDS).logits
        for mode in ("weights",) if hasattr(whole.config, "num_experts_per_tok") else ("weights", "activations"):
            with deactivated(spread, neurons, mode=mode):
                masked[mode] = float((reference - spread(input_ids=IDS).logits).abs().max())
        moved = float((reference - whole(input_ids=IDS).logits).abs().max())
    return {
        "importance": difference(expected, found),
        "ranks": all(np.array_equal(expected.worst_rank[name], found.worst_rank[name]) for name in found.worst_rank),
        "metadata": expected.metadata == found.metadata,
        "plain": plain,
        "masked": masked,
        "moved": moved,
        "restored": all(map(torch.equal, before, weights(spread))),
        "parts": max(x.device_mesh.size() for x in spread.parameters() if local(x) is not x),
        "collectives": collectives(spread),
        "gathered": isinstance(spread.config.distributed_config.tp_plan, dict),
        "experts": Layout(spread, spread=True).family.stacks[0].experts is not None,
        "blocks": len(Layout(spread, spread=True).blocks),
    }


def said(use: Callable[[], object]) -> str:
    """What a refusal says."""
    try:
        return f"no refusal: {use()!r}"
    except PLNDError as error:
        return str(error)


def interrupted(texts: list[list[int]]) -> Iterator[list[int]]:
    """All documents but the last two, and then an interrupt."""
    yield from texts[:-2]
    raise RuntimeError


def commands(folder: Path, output: Path) -> None:
    """Command lines, lm-eval's model, a run that is resumed, and what is refused, of the model in `folder`/model."""
    from lm_eval.api.instance import Instance  # the imports of the other runs are fewer
    from peft import get_peft_model

    from lm_eval_plnd.model import PLNDLM
    from peft_plnd import NeuronSelectConfig
    from plnd.commands import main as cli
    from plnd.logit_lens.lens import decode_tokens

    model_folder, mask, found = str(folder / "model"), folder / "mask.safetensors", {}
    lm = PLNDLM.create_from_arg_string(f"mask={mask},tp_plan=auto,dtype=float32", {"batch_size": 1})
    found["nats"] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS])
    model, rank = load_model(model_folder, dtype="float32", tensor_parallel=True), dist.get_rank()
    texts = documents()
    checkpoint = folder / "checkpoint"
    detection.CHECKPOINT_SECONDS, detection.WINDOW = 0, 1
    whole = detect(model, texts, CONFIG)
    with suppress(RuntimeError):
        detect(model, interrupted(texts), CONFIG, checkpoint=checkpoint)
    dist.barrier()
    found["left"] = checkpoint.exists()
    resumed = detect(model, texts, CONFIG, checkpoint=checkpoint, resume=True)
    found["resumed"] = difference(whole, resumed), whole.metadata == resumed.metadata
    parts = [detect_shard(model, texts, shard, CONFIG, checkpoint=checkpoint) for shard in ("2/2", "1/2")]
    found["shards"] = merge(parts).digest == whole.digest, [part.metadata.corpus.documents for part in parts]
    found["other corpora"] = said(lambda: detect(model, texts[rank:], CONFIG))
    found["lens"] = said(lambda: decode_tokens(model, None, texts))
    found["tuning"] = said(lambda: get_peft_model(model, NeuronSelectConfig(neurons={"q_proj": {"out": [1]}})))
    found["quantised"] = said(lambda: load_model(model_folder, quantize="4bit", tensor_parallel=True))
    found["no experts"] = said(lambda: load_model(model_folder, expert_parallel=True))
    if rank == 1:  # what one process sees, all have to say
        model.model.layers[0].register_forward_hook(lambda module, args, output: output + 1)
    found["one refuses"] = said(lambda: detect(model, texts, CONFIG))
    output.write_text(json.dumps(found))
    files = ["--corpus", str(folder / "corpus.txt"), "--output", str(folder / "spread")]
    cli.main([*DETECT, "--model", model_folder, *files, "--tensor-parallel"])


def main(folder: Path, names: list[str]) -> None:
    """Each family in turn: its name, `:heads` for eight of them, `:experts` for whole experts, `:methods` for all."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for case in names:
        name, *how = case.split(":")
        path, rank = folder / case.replace(":", "-"), dist.get_rank()
        if rank == 0:
            tiny(name, eight_heads="heads" in how).save_pretrained(path)
        dist.barrier()
        spread = load_model(str(path), dtype="float64", tensor_parallel=True, expert_parallel="experts" in how)
        whole = load_model(str(path), dtype="float64", device="cpu")
        for model in (whole, spread):
            model.double()  # some routers are loaded in float32
        for model in (whole, spread) if hasattr(whole.config, "num_experts_per_tok") else ():
            model.set_experts_implementation("eager")  # the default one has no float64
        with KeepFloat64():
            try:
                found = compared(whole, spread)
            except FamilyError as error:
                found = {"refused": str(error)}
            if "methods" in how:
                found["methods"] = {
                    method: difference(detect(whole, documents(), config), detect(spread, documents(), config))
                    for method, config in METHODS.items()
                }
        Path(f"{path}.{rank}.json").write_text(json.dumps(found))
    if (folder / "mask.safetensors").exists():
        commands(folder, folder / f"commands.{dist.get_rank()}.json")  # the last command leaves the process group
    else:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
