"""Which rows of the families table pass on which releases of transformers, PEFT and lm-eval: makes an environment each.

    python scripts/compatibility.py --overlay                                # oldest allowed, pinned, newest
    python scripts/compatibility.py --overlay --set "transformers==5.8.1"    # what is not named is the pinned release
    python scripts/compatibility.py --python python3.10 --python python3.13  # whole environments, PyTorch included

The oldest releases are those of setup.cfg, the pinned ones those of constraints.txt, the newest what the package index
has. With `--overlay` an environment holds the named releases, and what these need and the running environment has not,
and finds the rest in the running one: seconds instead of gigabytes. Needs the repository, for the tests' tiny models.

Every row's tiny random models go through five checks: `detect`, every closed form against brute force, in float64;
`deactivate`, in the weights against by hooks, and back bit for bit; `export`, the zeroed checkpoint loaded by plain
transformers against the deactivated model; `tune`, training the neurons alone, and the merged model against the tuned
one; `lm_eval`, the plug-in with a mask against lm-eval's own `hf` on the zeroed checkpoint.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import platform
import subprocess
import sys
import tempfile
import traceback
import venv
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("transformers", "peft", "lm-eval")
TOLERANCE = 1e-9


# one environment: what runs in it


def check_rows(rows: list[str]) -> dict[str, dict[str, str]]:
    """Row to check to the error that it ended in, "" where it passed; no check where the release has no such model."""
    import torch
    from tqdm import tqdm
    from transformers import CONFIG_MAPPING

    sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "scripts")]
    from plnd.models.loading import disable_progress_bars
    from tiny import TINY, VARIANTS

    disable_progress_bars()
    models: dict[str, list[str]] = {row: [] for row in rows or TINY}
    for name, make in (TINY | VARIANTS).items():
        if make.args[1] not in CONFIG_MAPPING:  # a type of a later release
            continue
        row = name if name in TINY else _row_of(name, make)
        if row in models or (row == name and not rows):
            models.setdefault(row, []).append(name)
    results: dict[str, dict[str, str]] = {
        row: dict.fromkeys(CHECKS if names else (), "") for row, names in models.items()
    }
    for row, names in tqdm(models.items(), desc=f"transformers {metadata.version('transformers')}"):
        for check, name in product(CHECKS, names):
            torch.set_default_dtype(torch.float64 if name == "xglm" else torch.float32)  # it needs float64's range
            try:
                CHECKS[check](name)
            except Exception as error:  # a failure of any kind is what the table is for
                results[row][check] = f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
                traceback.print_exc(file=sys.stderr)
    return results


def _row_of(variant: str, make: Callable[[], Any]) -> str:
    """The row that a variant belongs to; its own name if this release cannot make it, which its checks will say."""
    from plnd.models.layout import Layout

    try:
        return Layout(make()).family.name
    except Exception:
        return variant


def _detect(name: str) -> None:
    import torch
    from exactness import errors

    ids = torch.randint(3, 97, (11,), generator=torch.Generator().manual_seed(1))
    wrong = {projection: error for projection, error in errors(name, ids).items() if not error < TOLERANCE}
    assert not wrong, f"relative errors {wrong}"


def _deactivate(name: str) -> None:
    import torch

    from plnd.deactivation import deactivated
    from tiny import logits, tiny_model
    from tuning import batch

    model, ids = tiny_model(name), batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    neurons = _neurons(model)
    with torch.no_grad():
        plain = logits(model, ids)
        with deactivated(model, neurons, mode="weights"):
            masked = logits(model, ids)
        assert not torch.allclose(masked, plain), "nothing was switched off"
        if not _mixture(model):  # fused experts have no hooks
            with deactivated(model, neurons, mode="activations"):
                torch.testing.assert_close(logits(model, ids), masked)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "not as it was"


def _export(name: str) -> None:
    import torch

    from plnd.deactivation import deactivated
    from tiny import logits
    from tuning import batch

    with tempfile.TemporaryDirectory() as folder:
        source, neurons, exported = _checkpoints(name, Path(folder))
        model = _load(source)
        with torch.no_grad(), deactivated(model, neurons):
            assert torch.equal(logits(_load(exported), batch()), logits(model, batch())), "another model"


def _tune(name: str) -> None:
    import torch
    from peft import get_peft_model

    from peft_plnd import NeuronSelectConfig
    from tiny import logits, tiny_model
    from tuning import batch, make_mask, steps

    with tempfile.TemporaryDirectory() as folder:
        mask = Path(folder) / "mask.safetensors"
        model = tiny_model(name, torch.float32)
        make_mask(model, mask)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        tuned = get_peft_model(model, NeuronSelectConfig(mask=str(mask)))
        trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        steps(tuned, trained, lambda parameters: torch.optim.SGD(parameters, lr=0.1), count=2)
        tuned.eval()
        with torch.no_grad():
            expected = logits(tuned, batch())
            merged = tuned.merge_and_unload()
            torch.testing.assert_close(logits(merged, batch()), expected, rtol=1e-3, atol=1e-3)
        changed = [key for key, value in merged.state_dict().items() if not torch.equal(value, before[key])]
        assert changed, "nothing was trained"


def _lm_eval(name: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from lm_eval_plnd.documents import DocumentLM
    from lm_eval_plnd.model import PLNDLM

    known = {*AutoModelForCausalLM._model_mapping, *AutoModelForSeq2SeqLM._model_mapping}
    text = [("Ein kleiner Satz.", " Noch einer."), ("短句。", " 好。")]
    requests = [Instance("loglikelihood", {}, arguments, n) for n, arguments in enumerate(text)]
    common: dict[str, Any] = {"device": "cpu", "dtype": "float32", "batch_size": 2, "max_length": 64}
    with tempfile.TemporaryDirectory() as folder:
        source, neurons, exported = _checkpoints(name, Path(folder), tokenizer=True)
        mask = Path(folder) / "mask.safetensors"
        neurons.save(mask)
        if _routed(source):
            common["experts_implementation"] = "eager"  # the default one wants longer rows than tiny ones
        # lm-eval's `hf` cannot load the text tower of a larger model by itself
        plain_lm = HFLM if type(AutoConfig.from_pretrained(source)) in known else DocumentLM
        found, expected, plain = (
            [answer[0] for answer in model.loglikelihood(requests, disable_tqdm=True)]
            for model in (
                PLNDLM(pretrained=str(source), mask=str(mask), **common),
                plain_lm(pretrained=str(exported), **common),
                plain_lm(pretrained=str(source), **common),
            )
        )
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-3, f"{found}, expected {expected}"
    assert found != plain, "nothing was switched off"


CHECKS: dict[str, Callable[[str], None]] = {
    "detect": _detect,
    "deactivate": _deactivate,
    "export": _export,
    "tune": _tune,
    "lm_eval": _lm_eval,
}


def _neurons(model: Any) -> Any:
    """Every third neuron of every projection."""
    import numpy as np

    from handmade import neurons_metadata
    from plnd.models.layout import Layout
    from plnd.neurons.neuron_set import NeuronSet

    layout = Layout(model)
    indices = {address: np.arange(0, width, 3, dtype=np.int32) for address, width in layout.widths.items()}
    importance = {address: np.ones(len(rows), dtype=np.float32) for address, rows in indices.items()}
    return NeuronSet(indices, importance, neurons_metadata(model=layout.description()))


def _mixture(model: Any) -> bool:
    from plnd.models.layout import Layout

    return any(block.stack.experts for block in Layout(model).blocks)


def _checkpoints(name: str, folder: Path, *, tokenizer: bool = False) -> tuple[Path, Any, Path]:
    """A tiny model's checkpoint, neurons of it, and its checkpoint without them."""
    import torch
    from transformers import AutoTokenizer

    from plnd.demo_data import demo_model
    from plnd.exchange.export import export
    from tiny import TINY, VARIANTS

    source, exported = folder / "source", folder / "exported"
    words = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    make = (TINY | VARIANTS)[name]
    sizes = {key for key in make.keywords if key.startswith("vocab_size")} if tokenizer else set()
    model = make(**dict.fromkeys(sizes, len(words))).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(source, max_shard_size="20KB")
    if tokenizer:
        words.save_pretrained(source)
    neurons = _neurons(_load(source))
    export(source, neurons, exported)
    return source, neurons, exported


def _routed(folder: Path) -> bool:
    from transformers import AutoConfig

    return bool(getattr(AutoConfig.from_pretrained(folder), "num_experts_per_tok", None))


def _load(folder: Path) -> Any:
    from plnd.models.loading import load_model

    model = load_model(str(folder), dtype="float32", device="cpu")
    if _routed(folder):
        model.set_experts_implementation("eager")
    return model


# making the environments


def limits(which: str) -> dict[str, str]:
    """Requirements of a set of releases by package: `oldest`, `pinned` or `newest`, or spelled out in one line."""
    if which == "newest":
        return {name: name for name in PACKAGES}
    pinned = dict(_pinned())
    if which == "pinned":
        return pinned
    if which == "oldest":
        settings = configparser.ConfigParser()
        settings.read(ROOT / "setup.cfg", encoding="utf-8")
        lines = settings["options"]["install_requires"].replace("[hf]", "").splitlines()
        lowest = dict(line.split(">=") for line in lines if ">=" in line)
        return {name: f"{name}=={lowest[name].split(',')[0]}" for name in PACKAGES}
    from packaging.requirements import Requirement

    return pinned | {Requirement(line).name: line for line in which.split()}


def _pinned() -> Iterator[tuple[str, str]]:
    from packaging.requirements import Requirement

    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.name in PACKAGES and (requirement.marker is None or requirement.marker.evaluate()):
                yield requirement.name, f"{requirement.name}{requirement.specifier}"


def environment(folder: Path, requirements: list[str], *, overlay: bool, interpreter: str) -> Path:
    """Makes a virtual environment with these releases; returns its interpreter."""
    if overlay:
        venv.create(folder, with_pip=True, clear=True)
    else:
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not overlay:
        subprocess.run([*pip, str(ROOT), "pytest", *requirements], check=True)
        return python
    own = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    wanted = requirements
    while wanted:  # what the releases need, what that needs, …, until the running environment has the rest
        subprocess.run([*pip, "--no-deps", *wanted], check=True)
        wanted = _unmet(own)
    around = [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]
    (own / "zz_around.pth").write_text("".join(f"import site; site.addsitedir({str(path)!r})\n" for path in around))
    return python


def _unmet(own: Path) -> list[str]:
    """What the packages of a folder need, and neither it nor the running environment has."""
    from packaging.requirements import Requirement

    found = {dist.name.lower().replace("_", "-"): dist for dist in metadata.distributions(path=[str(own)])}
    unmet = set()
    for dist in found.values():
        for requirement in map(Requirement, dist.requires or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            name = requirement.name.lower().replace("_", "-")
            try:
                version = found[name].version if name in found else metadata.version(name)
            except metadata.PackageNotFoundError:
                version = None
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                unmet.add(f"{requirement.name}{requirement.specifier}")
    return sorted(unmet)


def run(python: Path, rows: list[str]) -> dict[str, Any]:
    """Runs the checks in an environment; its releases and results."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [str(python), __file__, "--check", str(output), *(f"--row={row}" for row in rows)]
        environ = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run(command, check=True, env=environ)
        return json.loads(output.read_text(encoding="utf-8"))


# the table


def markdown(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Rows of the families table against environments: which checks failed, and why below the table.

    Rows that pass everywhere are one line, the last.
    """
    heads = [f"Python {r['python']}, " + ", ".join(f"{n} {v}" for n, v in r["releases"].items()) for r in runs]
    yield f"| row | {' | '.join(heads)} |"
    yield "|---" * (1 + len(runs)) + "|"
    reasons, passing = [], []
    for row in dict.fromkeys(row for r in runs for row in r["results"]):
        cells = []
        for head, results in zip(heads, (r["results"].get(row) for r in runs), strict=True):
            failed = {check: reason for check, reason in (results or {}).items() if reason}
            reasons += [f"- `{row}`, {check}, {head}: {reason}" for check, reason in failed.items()]
            passed = "passes" if results else "not run" if results is None else "not in this release"
            cells.append("fails: " + ", ".join(failed) if failed else passed)
        if set(cells) == {"passes"}:
            passing.append(f"`{row}`")
        else:
            yield f"| `{row}` | {' | '.join(cells)} |"
    if passing:
        yield f"| {', '.join(passing)} |{' passes |' * len(runs)}"
    if reasons:
        yield ""
        yield from reasons


def main() -> int:
    """Makes the environments, runs the checks in each, prints the table; exit status 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", help="oldest, pinned, newest, or requirements (default: these three)")
    parser.add_argument("--overlay", action="store_true", help="over the running environment, not whole environments")
    parser.add_argument(
        "--python", action="append", help="interpreters of whole environments (default: the running one)"
    )
    parser.add_argument("--row", action="append", default=[], help="of the families table; all by default")
    parser.add_argument("--folder", type=Path, help="keeps the environments here; they are removed by default")
    parser.add_argument("--json", type=Path, help="adds the results to those in this file, and prints all of them")
    parser.add_argument("--here", action="store_true", help="runs in the running environment, as it is")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.check:
        releases = {name: metadata.version(name) for name in (*PACKAGES, "torch")}
        results = {"python": platform.python_version(), "releases": releases, "results": check_rows(args.row)}
        args.check.write_text(json.dumps(results), encoding="utf-8")
        return 0
    if args.overlay and args.python:
        parser.error("--overlay is over the running environment: leave out --python")
    runs = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        for python in _environments(args, args.folder or Path(temporary)):
            runs.append(run(python, args.row))
            if args.json:
                args.json.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    print("\n".join(markdown(runs)))
    return int(any(reason for r in runs for checks in r["results"].values() for reason in checks.values()))


def _environments(args: argparse.Namespace, folder: Path) -> Iterator[Path]:
    if args.here:
        yield Path(sys.executable)
        return
    for interpreter in args.python or [sys.executable]:
        for number, which in enumerate(args.set or ["oldest", "pinned", "newest"]):
            where = folder / f"{Path(interpreter).name}-{number}"
            yield environment(where, list(limits(which).values()), overlay=args.overlay, interpreter=interpreter)


if __name__ == "__main__":
    sys.exit(main())
