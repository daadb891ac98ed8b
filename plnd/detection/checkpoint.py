"""The file from which a run that was killed goes on, to the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import nn

from plnd.detection.config import DetectConfig
from plnd.detection.documents import Skipped
from plnd.detection.shards import Shard
from plnd.detection.tally import Tally
from plnd.detection.totals import ROWS, Totals
from plnd.errors import PLNDError
from plnd.io.files import write_bytes
from plnd.models.blockwise import weights_of
from plnd.models.distributed import Group
from plnd.models.layout import Layout
from plnd.models.spread import local
from plnd.version import __version__

FINGERPRINT_STRIDE = 61
"""Which values of a matrix go into the fingerprint: a prime, so that every row and column of a large one has some."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after some whole windows.

    Attributes:
        settings: what must be equal for a run to be continued (`run_settings`).
        windows: how many were taken in.
        tally: what was found in them.
        digest: of the corpus up to here.
    """

    settings: dict[str, Any]
    windows: int
    tally: Tally
    digest: str

    def save(self, path: Path) -> None:
        """Writes it in one step."""
        header = {
            "settings": self.settings,
            "windows": self.windows,
            "documents": self.tally.documents,
            "tokens": self.tally.tokens,
            "bad": {section: asdict(left_out) for section, left_out in self.tally.non_finite.items()},
            "widths": self.tally.totals.widths,
            "digest": self.digest,
        }
        values = self.tally.totals.values.cpu()
        write_bytes(serialize({"values": values}, metadata={"plnd": json.dumps(header)}), path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Reads one.

        Raises:
            PLNDError: if the file is no whole checkpoint.
        """
        try:
            with safe_open(path, framework="pt") as stream:
                header = json.loads(stream.metadata()["plnd"])
                values = stream.get_tensor("values")
            widths = {str(name): int(width) for name, width in header["widths"].items()}
            if values.dim() == 2 and len(values) < ROWS:
                raise PLNDError(
                    f"{path}: a checkpoint of an earlier plnd, with {len(values)} numbers of every neuron where"
                    f" {ROWS} are expected; delete it to start again"
                )
            if values.shape != (ROWS, sum(widths.values())) or values.dtype != torch.float64:
                raise ValueError(f"{values.dtype} of shape {list(values.shape)}")
            return cls(
                settings=header["settings"],
                windows=int(header["windows"]),
                tally=Tally(
                    documents=int(header["documents"]),
                    tokens=int(header["tokens"]),
                    non_finite={int(section): Skipped(**bad) for section, bad in header["bad"].items()},
                    totals=Totals(widths, values),
                ),
                digest=str(header["digest"]),
            )
        except PLNDError:
            raise
        except Exception as error:  # whatever a damaged file may raise
            raise PLNDError(
                f"{path}: not a whole checkpoint ({type(error).__name__}: {error}); delete it to start again"
            ) from None


def run_settings(
    layout: Layout, config: DetectConfig, window: int, shard: Shard, deactivated: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What must be equal for a run to be continued, as JSON gives it back.

    To be called before the first forward pass, which may pack quantised weights anew.
    """
    settings = {
        "plnd": __version__,
        "window": window,
        "shard": str(shard),
        "model": layout.description(),
        "config": asdict(config),
        "dtype": str(layout.model.dtype),
        "weights": fingerprint(layout.model, layout.group),
        "deactivated": deactivated,
    }
    return json.loads(json.dumps(settings))


def fingerprint(model: nn.Module, group: Group | None = None) -> str:
    """SHA-256 of all parameters: name, shape, dtype, a vector's values, of a matrix every `FINGERPRINT_STRIDE`th.

    Of a model that is spread over the processes of `group`, that of the parts of all of them.
    """
    from accelerate.utils import align_module_device

    weights = weights_of(model)
    digest = hashlib.sha256()
    for prefix, module in model.named_modules():
        with align_module_device(module):
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if weights is not None and parameter.is_meta:
                    parameter = weights.read(module, name.rpartition(".")[2])
                digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}\n".encode())
                stride = FINGERPRINT_STRIDE if parameter.dim() > 1 else 1
                sample = local(parameter.data).flatten()[::stride].clone(memory_format=torch.contiguous_format)
                digest.update(sample.cpu().view(torch.uint8).numpy().tobytes())
    if group is None:
        return digest.hexdigest()
    return hashlib.sha256("".join(group.exchange(digest.hexdigest())).encode()).hexdigest()
