"""What was measured on a model, kept by all that it depends on: a run that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_plnd.experiments.results import read_json
from lm_eval_plnd.identity import answers_digest
from plnd.errors import PLNDError
from plnd.io.files import write_bytes
from plnd.io.inputs import digest_of

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


@dataclass(frozen=True)
class Kept:
    """A folder of measurements on one model.

    Attributes:
        folder: where they are; None keeps nothing.
        model: digest of the model and its tokenizer, by content.
    """

    folder: Path | None = None
    model: str = ""

    @classmethod
    def of(cls, lm: HFLM, folder: Path) -> Kept:
        """Of a loaded model; of one whose content cannot be told (offloaded weights) nothing is kept."""
        digest = loaded_digest(lm)
        if digest is None:
            return cls()
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, digest)

    def path(self, name: str, about: Any) -> Path | None:
        """The file of what depends on the model and on `about`, which JSON can say."""
        return None if self.folder is None else self.folder / f"{name}-{digest_of([self.model, about])[:24]}"

    def get(self, name: str, about: Any, measure: Callable[[], Any]) -> Any:
        """A value that JSON can say: the one that is kept, else what `measure` finds, kept from now on.

        Args:
            name: the file begins with it, for people.
            about: what the value depends on beside the model, which JSON can say.
            measure: finds it.

        Raises:
            PLNDError: if the file is damaged, naming it.
        """
        path = self.path(name, about)
        if path is None:
            return measure()
        path = path.with_name(f"{path.name}.json")
        if path.exists():
            kept = read_json(path)
            if kept.get("sha256") != digest_of(kept.get("value")):
                raise PLNDError(f"{path}: damaged; delete it, and this is measured again")
            return kept["value"]
        found = measure()
        content = json.dumps({"value": found, "sha256": digest_of(found)}, ensure_ascii=False) + "\n"
        write_bytes(content.encode(), path)
        return found


def loaded_digest(lm: HFLM) -> str | None:
    """SHA-256 of a loaded model and its tokenizer; None if some of its content cannot be told."""
    try:
        return answers_digest(lm.model, lm.tokenizer, None, {})
    except PLNDError:
        return None
