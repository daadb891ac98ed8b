"""The file from which a run that was killed goes on, to the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plnd.detection.config import DetectConfig
from plnd.detection.documents import Skipped
from plnd.detection.shards import Shard
from plnd.detection.tally import Tally
from plnd.detection.totals import ROWS, Totals
from plnd.errors import ArtifactError, PLNDError
from plnd.io import artifact
from plnd.io.files import write_bytes
from plnd.models.blockwise import weights_of
from plnd.models.distributed import Group
from plnd.models.layout import Layout
from plnd.models.spread import local
from plnd.version import __version__

FINGERPRINT_STRIDE = 61
"""Which values of a matrix go into the fingerprint: a prime, so that every row and column of a large one has some."""

_SAID_ONLY = ("name_or_path", "transformers_version", "use_cache", "architectures", "dtype", "torch_dtype")


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
        """Writes it in one step, with a checksum."""
        header = {
            "settings": self.settings,
            "windows": self.windows,
            "documents": self.tally.documents,
            "tokens": self.tally.tokens,
            "bad": {section: asdict(left_out) for section, left_out in self.tally.non_finite.items()},
            "widths": list(self.tally.totals.widths.items()),  # in order
            "digest": self.digest,
        }
        values = self.tally.totals.values.cpu().numpy()
        write_bytes(artifact.encoded({"values": values}, *artifact.checked_text(header)), path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Reads one.

        Raises:
            PLNDError: if the file is no whole checkpoint, or one of an earlier plnd.
        """
        try:
            with artifact.opened(path) as stream:
                header = stream.metadata
                if artifact.CHECKSUM not in header:
                    raise PLNDError(
                        f"{path}: a checkpoint without checksum, of an earlier plnd; delete it to start again"
                    )
                widths = {str(name): int(width) for name, width in header["widths"]}
                place = stream.get_slice("values")
                if place.dtype != "F64" or place.shape != (ROWS, sum(widths.values())):
                    raise ValueError(f"{place.dtype} of shape {list(place.shape)}")
                values = torch.tensor(stream.get_tensor("values"))
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
        except ArtifactError as error:
            problem = str(error).removeprefix(f"{path}: ").partition(";")[0]
        except PLNDError:
            raise
        except Exception as error:  # whatever a header may lack
            problem = f"{type(error).__name__}: {error}"
        raise PLNDError(f"{path}: not a whole checkpoint ({problem:.200}); delete it to start again")


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
    """SHA-256 of the configuration and all parameters: name, shape, dtype, a vector's values, of a matrix every
    `FINGERPRINT_STRIDE`th.

    Of a model that is spread over the processes of `group`, that of the parts of all of them.
    """
    from accelerate.utils import align_module_device

    weights = weights_of(model)
    digest = hashlib.sha256(json.dumps(_computing(model), sort_keys=True, default=str).encode())
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


def _computing(model: nn.Module) -> dict[str, Any]:
    """What a model's configuration, if it has one, says of how to compute: not where it came from, nor who wrote it."""
    said = model.config.to_dict() if hasattr(model, "config") else {}  # type: ignore[operator,union-attr]
    return {name: value for name, value in said.items() if name not in _SAID_ONLY and name[0] != "_"}
