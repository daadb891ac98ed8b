"""Makes `lm_eval --model plnd` work, and neuron-select adapters load, in programs that import nothing of this project.

Installing this project puts one line into site-packages (`lm_eval_plnd.pth`) that runs `install()` at every Python
start-up. So this module is small, imports nothing but `sys` and `os`, which are loaded by then, and does nothing until
somebody imports one of two modules:

- `lm_eval.models`, of a release that discovers no plugins (0.4.13 is one): the name `plnd` is registered behind it. It
  cannot be registered earlier: lm-eval fills its model registry only while that is empty, so a name that is there first
  hides every model of lm-eval's own.
- `peft.mapping`: its table of methods learns to import `peft_plnd` when it is asked for the method NEURON_SELECT and
  does not have it, which is when somebody loads such an adapter. Whoever uses PEFT for something else pays nothing.

Set the environment variable `PLND_BRIDGE=0` to switch both off; `python -m lm_eval_plnd` needs no bridge, and nor does
what imports `peft_plnd`.
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
METHOD = "NEURON_SELECT"
TABLE = "PEFT_TYPE_TO_CONFIG_MAPPING"


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


class Methods(dict):  # type: ignore[type-arg]
    """PEFT's table of methods, which every way to load an adapter asks for the class of its configuration."""

    def __missing__(self, name: "Any") -> "Any":
        if name == METHOD:
            import peft_plnd  # noqa: F401  registers the method, here among others

            if name in self:
                return self[name]
        raise KeyError(name)


def after_lm_eval(module: "ModuleType") -> None:
    """What happens when `lm_eval.models` has been imported."""
    if is_needed():
        register()


def after_peft(module: "ModuleType") -> None:
    """What happens when `peft.mapping` has been imported, and before anybody could take the table from it."""
    if type(getattr(module, TABLE, None)) is dict:
        setattr(module, TABLE, Methods(getattr(module, TABLE)))


ACTIONS = {"lm_eval.models": after_lm_eval, "peft.mapping": after_peft}


class Loader:
    """The real loader of a module in everything, except that the module's action follows when it has run."""

    def __init__(self, real: "Any") -> None:
        self.real = real

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.real, name)

    def exec_module(self, module: "ModuleType") -> None:
        """Execute the module as if there were no bridge, then act; take the bridge away when nothing is awaited."""
        module.__loader__ = self.real
        if module.__spec__ is not None:
            module.__spec__.loader = self.real
        self.real.exec_module(module)
        if (action := Finder.awaited.pop(module.__name__, None)) is not None:
            action(module)
        if not Finder.awaited:
            # A new list, not remove(): another thread that is walking the old one would skip a finder.
            sys.meta_path = [finder for finder in sys.meta_path if finder is not Finder]


class Finder:
    """Sits first on `sys.meta_path` until what is awaited is imported; answers for no other module."""

    awaited: "dict[str, Any]" = {}

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """What the other finders say, with the loader wrapped; a mere look at the spec uses nothing up."""
        if name not in cls.awaited:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec is not None and finder is not cls else None
            if spec is not None:
                spec.loader = Loader(spec.loader)
                return spec
        return None


def install() -> None:
    """Start waiting for what is not loaded yet, unless `PLND_BRIDGE=0`, or somebody waits already."""
    if os.environ.get("PLND_BRIDGE") == "0" or Finder in sys.meta_path:
        return
    Finder.awaited = {name: action for name, action in ACTIONS.items() if name not in sys.modules}
    if Finder.awaited:
        sys.meta_path.insert(0, Finder)
