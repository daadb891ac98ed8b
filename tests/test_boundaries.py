"""Who imports whom: `lm_eval_plnd -> plnd <- peft_plnd`, and neither plugin the other."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import plnd

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted(f"plnd.{path.stem}" for path in (ROOT / "plnd").glob("*.py") if path.stem not in ("__init__", "__main__"))
PLUGINS = [name for name in ("lm_eval_plnd", "peft_plnd") if (ROOT / name).is_dir()]


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


@pytest.fixture(scope="module")
def loaded_by_the_core() -> set[str]:
    """What is loaded after importing every core module."""
    return modules_after(f"import {', '.join(CORE)}")


def test_the_core_is_found():
    """The lists that the tests below run over are not empty."""
    assert {"plnd.cli", "plnd.detection", "plnd.deactivation", "plnd.plots"} <= set(CORE)
    assert "lm_eval_plnd" in PLUGINS


@pytest.mark.parametrize("package", ["lm_eval", "matplotlib", "datasets", "cld3", "gcld3", "peft_plnd"])
def test_importing_the_core_loads_no_host(loaded_by_the_core, package):
    """Importing every core module leaves the hosts, the plugins and what only some users need unloaded."""
    assert {"torch", "transformers", "plnd"} <= loaded_by_the_core
    assert package not in loaded_by_the_core


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
