"""Makes `lm_eval --model plnd` work with releases of lm-eval that discover no plugins (0.4.13 is one).

Installing this project puts one line into site-packages (`lm_eval_plnd.pth`) that runs `install()` at every Python
start-up. So this module is small, imports nothing but `sys` and `os`, which are loaded by then, and does nothing until
somebody imports `lm_eval.models`. It cannot register earlier: lm-eval fills its model registry only while that is
empty, so a name that is there first hides every model of lm-eval's own.

Set the environment variable `PLND_BRIDGE=0` to switch it off; `python -m lm_eval_plnd` needs no bridge.
"""

import os
import sys

TYPE_CHECKING = False  # what type checkers take for true; `typing` itself is not loaded at start-up
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

NAME = "plnd"
TARGET = "lm_eval_plnd.model:PLNDLM"  # a placeholder: lm-eval imports it when somebody asks for the model
AWAITED = "lm_eval.models"


def register() -> None:
    """Add `plnd` to lm-eval's model registry, unless it is there; to be called after `lm_eval.models` is imported."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


def is_needed() -> bool:
    """Whether lm-eval has the registry this bridge knows, and does not discover plugins by itself.

    Newer releases have `load_plugins`, which reads our entry point in the group `lm_eval.models`.
    """
    from lm_eval.api import registry

    return hasattr(registry, "model_registry") and not hasattr(registry, "load_plugins")


class Loader:
    """The real loader of `lm_eval.models` in everything, except that `plnd` is registered after it has run."""

    def __init__(self, real: "Any") -> None:
        self.real = real

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.real, name)

    def exec_module(self, module: "ModuleType") -> None:
        """Execute `lm_eval.models` as if there were no bridge, then register `plnd` and take the bridge away."""
        module.__loader__ = self.real
        if module.__spec__ is not None:
            module.__spec__.loader = self.real
        self.real.exec_module(module)
        if is_needed():
            register()
        # A new list, not remove(): another thread that is walking the old one would skip a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not Finder]


class Finder:
    """Sits first on `sys.meta_path` until `lm_eval.models` is imported; answers for no other module."""

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """What the other finders say, with the loader wrapped; a mere look at the spec uses nothing up."""
        if name != AWAITED:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec is not None and finder is not cls else None
            if spec is not None:
                spec.loader = Loader(spec.loader)
                return spec
        return None


def install() -> None:
    """Start waiting for `lm_eval.models`, unless `PLND_BRIDGE=0`, or it is loaded, or somebody waits already."""
    if os.environ.get("PLND_BRIDGE") != "0" and AWAITED not in sys.modules and Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
