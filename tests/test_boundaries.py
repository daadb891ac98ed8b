"""Who imports whom, down to the rooms of plnd: one table, no circle, and proofs that these tests can fail."""

from __future__ import annotations

import ast
import configparser
import json
import os
import subprocess
import sys
import textwrap
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

import plnd

ROOT = Path(__file__).resolve().parent.parent

# The import rules. A room is a folder or a file directly in a package; each may import the rooms listed beside it, and
# itself. `docs/architecture.md` shows the same as a picture.
GROUND = (
    "errors",
    "version",
    "addresses",
    "numbers",
    "model_description",
    "secrets",
    "statistics",
    "demo_data",
    "notebook",
)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "plnd": ("version",),  # the package's face: all public names are loaded when they are first used
    **dict.fromkeys((f"plnd.{room}" for room in GROUND), ("errors", "version", "addresses")),
    "plnd.importance": (),
    "plnd.io": GROUND,
    "plnd.models": (*GROUND, "io"),
    "plnd.neurons": (*GROUND, "io"),
    "plnd.logit_lens": (*GROUND, "io", "models"),
    "plnd.roles": (*GROUND, "io", "models", "neurons", "deactivation", "interventions"),
    "plnd.exchange": (*GROUND, "io", "models", "neurons", "interventions", "any_artifact"),
    "plnd.deactivation": (*GROUND, "io", "models", "neurons"),
    "plnd.references": (*GROUND, "io", "models", "neurons", "deactivation", "detection"),
    "plnd.detection": (*GROUND, "importance", "io", "models", "neurons", "deactivation"),
    "plnd.probing": (*GROUND, "importance", "io", "models", "deactivation", "detection"),
    "plnd.inspection": (*GROUND, "models", "neurons", "logit_lens", "detection"),
    "plnd.explorer": (*GROUND, "io", "neurons", "inspection", "any_artifact"),
    "plnd.interventions": (*GROUND, "io", "models", "neurons", "deactivation", "references"),
    "plnd.comparison": (*GROUND, "io", "models", "neurons", "detection", "interventions", "plots"),
    "plnd.plot_style": (*GROUND, "io"),
    "plnd.plots": (*GROUND, "plot_style"),
    "plnd.any_artifact": (*GROUND, "io", "neurons", "references", "roles"),
    "plnd.commands": ("*",),
    "plnd.__main__": ("commands",),
}
PLUGINS = ("lm_eval_plnd", "peft_plnd")


def room_of(module: str) -> str:
    """The room of a module of plnd: `plnd.models.layout` is in `plnd.models`."""
    return ".".join(module.split(".")[:2])


def module_name(path: Path) -> str:
    """`plnd/models/layout.py` is plnd.models.layout, `plnd/models/__init__.py` plnd.models."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: str) -> dict[str, str]:
    """The modules of a package, by name, with their source."""
    return {module_name(path): source for path, source in sources(package).items()}


def imports_of(source: str) -> set[str]:
    """The packages that a module's code imports, anywhere in it, functions and type checking included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value).partition(".")[0])
    return found


def imports_at_the_top(source: str) -> set[str]:
    """The packages that importing a module imports: those outside functions and `if TYPE_CHECKING`."""

    class Lazy(ast.NodeTransformer):
        def visit_FunctionDef(self, node):  # noqa: N802
            return ast.Pass()

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

        def visit_If(self, node):  # noqa: N802
            names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
            return ast.Pass() if "TYPE_CHECKING" in names else self.generic_visit(node)

    return imports_of(ast.unparse(ast.fix_missing_locations(Lazy().visit(ast.parse(source)))))


def sources(package: str) -> dict[Path, str]:
    """The modules of a package."""
    return {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / package).rglob("*.py"))}


def modules_after(code: str) -> set[str]:
    """What is loaded in a fresh interpreter after some code, top-level names only."""
    probe = f"{code}\nimport json, sys; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def names_imported(source: str) -> set[str]:
    """Every module that a source may import, in full, anywhere in it: `from a import b` names `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports_between(package: str, sources_by_module: dict[str, str]) -> dict[str, set[str]]:
    """Module to the modules of the same package that it imports; a name that is no module counts as its home."""
    graph = {}
    for module, source in sources_by_module.items():
        inner = {name for name in names_imported(source) if name in sources_by_module and name != module}
        if package in inner and any(name.startswith(f"{package}.") for name in inner):
            inner.discard(package)  # `from plnd import deactivation` names the module, not the package's face
        graph[module] = inner
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The places that import each other in a loop, some loop; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def trespasses(graph: dict[str, set[str]], rules: dict[str, tuple[str, ...]]) -> list[str]:
    """The imports that the rules do not allow, `plnd.io.files imports plnd.models.layout`."""
    found = []
    for module, imported in sorted(graph.items()):
        own, allowed = room_of(module), rules.get(room_of(module))
        for name in sorted(imported):
            room = room_of(name)
            inside = room == own and not own == "plnd"
            if allowed is None or not (inside or "*" in allowed or room.removeprefix("plnd.") in allowed):
                found.append(f"{module} imports {name}")
    return found


OF_TRITON = ("plnd.importance.triton_kernels", "plnd.importance.triton_softmax")


@pytest.fixture(scope="module")
def loaded_by_the_core() -> set[str]:
    """What is loaded after importing every core module; kernels of Triton only where it is installed."""
    left_out = {"plnd.__main__"} if find_spec("triton") else {"plnd.__main__", *OF_TRITON}
    return modules_after(f"import {', '.join(sorted(set(modules('plnd')) - left_out))}")


def test_rooms_are_those_of_the_table():
    """The table names each room of plnd, and no other."""
    assert {room_of(module) for module in modules("plnd")} - {"plnd"} == MAY_IMPORT.keys() - {"plnd"}


def test_rooms_import_what_the_table_allows():
    """Each room knows only those that the table gives it, anywhere in its code."""
    assert trespasses(imports_between("plnd", without_type_checking_of_the_face(modules("plnd"))), MAY_IMPORT) == []


def without_type_checking_of_the_face(sources_by_module: dict[str, str]) -> dict[str, str]:
    """The public names are declared for type checkers only, in the package's face; all else counts."""
    face = sources_by_module["plnd"]
    return sources_by_module | {"plnd": face[: face.index("if TYPE_CHECKING")]}


@pytest.mark.parametrize("package", ["plnd", *PLUGINS])
def test_no_circle(package):
    """No two files, and no two rooms of plnd, import each other in a loop, not even in a function."""
    found = modules(package)
    graph = imports_between(package, without_type_checking_of_the_face(found) if package == "plnd" else found)
    assert circle(graph) == []
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        rooms.setdefault(room_of(module), set()).update({room_of(name) for name in imported} - {room_of(module)})
    assert circle(rooms) == []


def test_no_module_bears_the_name_of_a_public_function():
    """Importing `plnd.lens`, were it a module, would put it in the place of the function `plnd.lens`."""
    direct = {module.split(".")[1] for module in modules("plnd") if module != "plnd"}
    assert not direct & set(plnd.__all__)


@pytest.mark.slow
def test_public_names_are_still_theirs_when_everything_is_imported():
    """After importing all modules each public name is what its home defines."""
    found = (name for name in sorted(modules("plnd")) if ".triton_" not in name)  # which need a package of their own
    everything = ", ".join(name for name in found if name != "plnd.__main__")
    is_module = "isinstance(getattr(plnd, name), types.ModuleType)"
    modules_after(f"import plnd, types, {everything}\nassert not any({is_module} for name in plnd.__all__)")


@pytest.mark.parametrize("package", PLUGINS)
def test_experiments_are_on_top(package):
    """Nothing but `lm_eval_plnd.experiments` itself imports it."""
    outside = {name: source for name, source in modules(package).items() if ".experiments" not in name}
    assert [name for name, source in outside.items() if any(".experiments" in n for n in names_imported(source))] == []


OF_THE_TUNER = {"plnd.errors", "plnd.models.quantised", "plnd.models.spread", "plnd.neurons.random_draw"}


def test_the_tuner_knows_torch_and_peft():
    """What `scripts/upstream.py` puts into PEFT's tree knows neither a model's family nor an artifact."""
    assert foreign(modules("peft_plnd/tuner")) == set()


def foreign(sources_by_module: dict[str, str]) -> set[str]:
    """The modules of plnd and of peft_plnd that the tuner's sources import, and may not."""
    named = {name for source in sources_by_module.values() for name in names_imported(source)}
    ours = {name for package in ("plnd", "peft_plnd") for name in modules(package)}
    return {name for name in named & ours if not name.startswith("peft_plnd.tuner")} - OF_THE_TUNER


def test_every_package_is_installed():
    """setup.cfg names every folder that holds modules: an editable install would not notice a missing one."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("plnd", *PLUGINS)
        for path in (ROOT / package).rglob("*.py")
    }
    assert folders == set(settings["options"]["packages"].split()) - {"plnd_tasks"}


@pytest.mark.parametrize("package", ["lm_eval", "matplotlib", "datasets", "cld3", "gcld3", "peft_plnd"])
@pytest.mark.slow
def test_importing_the_core_loads_no_host(loaded_by_the_core, package):
    """Importing every core module leaves the hosts, the plugins and what only some users need unloaded."""
    assert {"torch", "transformers", "plnd"} <= loaded_by_the_core
    assert package not in loaded_by_the_core


@pytest.mark.slow
def test_importing_the_core_loads_no_peft(loaded_by_the_core):
    """Peft is not loaded either, unless transformers by itself loads it."""
    assert "peft" not in loaded_by_the_core or "peft" in modules_after("import transformers")


@pytest.mark.parametrize("package", ["lm_eval", "peft", "lm_eval_plnd", "peft_plnd"])
def test_the_core_names_no_host(package):
    """No module of the core imports a host or a plugin, not even in a function."""
    assert [path.name for path, source in sources("plnd").items() if package in imports_of(source)] == []


@pytest.mark.parametrize("plugin, other", [("lm_eval_plnd", "peft_plnd"), ("peft_plnd", "lm_eval_plnd")])
def test_plugins_do_not_import_each_other(plugin, other):
    """At import time; a function may register the other, so that `--model plnd` can load its adapters."""
    assert [path.name for path, source in sources(plugin).items() if other in imports_at_the_top(source)] == []


def test_public_names_are_lazy():
    """`import plnd` loads none of its modules; every public name is there when it is asked for."""
    assert not {"torch", "numpy", "transformers", "safetensors"} & modules_after("import plnd")
    assert all(getattr(plnd, name) is not None for name in plnd.__all__)
    with pytest.raises(AttributeError, match="module 'plnd' has no attribute 'nothing'"):
        plnd.nothing  # noqa: B018


# proofs that the tests above can fail


def test_foreign_sees_a_stranger():
    """A family's layout is none of the tuner's business, a drawn number is."""
    lines = {"a": "from plnd.models.layout import Layout", "b": "from plnd.neurons.random_draw import draw"}
    assert foreign(lines) == {"plnd.models.layout"}


def test_circle_finds_one():
    """Two modules that import each other, one of them in a function, are a circle; a chain is none."""
    both = {"p.a": "import p.b", "p.b": "def f():\n    from p import a"}
    assert set(circle(imports_between("p", both))) == {"p.a", "p.b"}
    assert circle(imports_between("p", {"p.a": "import p.b", "p.b": "import os"})) == []


def test_trespasses_finds_one():
    """An import that the table does not allow is named; an unknown room may import nothing."""
    graph = {"plnd.io.files": {"plnd.models.layout", "plnd.io.artifact", "plnd.errors"}, "plnd.new": {"plnd.errors"}}
    expected = ["plnd.io.files imports plnd.models.layout", "plnd.new imports plnd.errors"]
    assert trespasses(graph, MAY_IMPORT) == expected


@pytest.mark.parametrize("package", ["lm_eval", "matplotlib"])
def test_modules_after_sees_imports(package):
    """The fresh interpreter reports a package that was imported."""
    pytest.importorskip(package)
    assert package in modules_after(f"import {package}")


@pytest.mark.parametrize(
    "source",
    [
        "import lm_eval",
        "import os, lm_eval.api.model as m",
        "from lm_eval.api import registry",
        "def f():\n    import lm_eval",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lm_eval import x",
        "import importlib\nimportlib.import_module('lm_eval.api')",
        "__import__('lm_eval')",
    ],
)
def test_imports_of_sees_imports(source):
    """The reading of the source finds every way to import."""
    assert "lm_eval" in imports_of(source)


def test_imports_of_sees_nothing_else():
    """A name that only begins alike, a relative import and a mention in text are no imports of it."""
    assert "lm_eval" not in imports_of("import lm_eval_plnd\nfrom . import lm_eval\nx = 'import lm_eval'")


def test_imports_at_the_top_leaves_out_what_runs_later():
    """Imports in functions, methods and type checking do not count; those in classes and conditions do."""
    later = textwrap.dedent("""
        if TYPE_CHECKING:
            import a
        class C:
            import b
            def m(self):
                import c
        try:
            import d
        except ImportError:
            async def f():
                import e
    """)
    assert imports_at_the_top(later) == {"b", "d"}
