"""The tuner as a patch for PEFT's own repository, made of `peft_plnd/tuner` and of what `upstream/` holds.

    git clone https://github.com/huggingface/peft
    python scripts/upstream.py peft --output upstream-peft
    git -C peft apply ../upstream-peft/neuron_select.patch

The folder has each new and each changed file at its place in PEFT's tree, and the patch. A few seconds, nothing is
downloaded, the checkout is only read. What is not in the checkout (an installed PEFT has no docs and no tests) is left
out. `upstream/README.md` says what differs from `peft_plnd`, and what remains to be done by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from difflib import unified_diff
from pathlib import Path

from peft_plnd.tuner.config import RowColumnConfig
from plnd.errors import PLNDError

ROOT = Path(__file__).resolve().parent.parent
METHOD = "src/peft/tuners/neuron_select"
COMPARISON = "method_comparison/MetaMathQA/experiments/neuron_select"

LICENCE = """\
# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""

SOURCES = {
    **{
        f"{name}.py": f"peft_plnd/tuner/{name}.py"
        for name in ("config", "experts", "layer", "model", "packed", "selection")
    },
    "quantised.py": "plnd/models/quantised.py",
    "spread.py": "plnd/models/spread.py",
    "random_draw.py": "plnd/neurons/random_draw.py",
}
"""Files of the method in PEFT's tree, and what they are made of."""

WRITTEN = {
    "__init__.py": """from peft.utils import register_peft_method

from .config import NeuronSelectConfig
from .layer import NeuronSelectLayer, NeuronSelectLinear
from .model import NeuronSelectModel


__all__ = ["NeuronSelectConfig", "NeuronSelectLayer", "NeuronSelectLinear", "NeuronSelectModel"]

register_peft_method(
    name="neuron_select", config_cls=NeuronSelectConfig, model_cls=NeuronSelectModel, prefix="neuron_select_"
)
""",
    "errors.py": '''"""What goes wrong with a config, or with neurons that do not fit the model."""


class NeuronSelectError(ValueError):
    """A config, or neurons, that do not fit the model."""
''',
}
"""Files of the method that are another thing here: there the package registers, and errors have a base of their own."""

RENAMED = {
    r"\bRowColumn(Config|Model)\b": r"NeuronSelect\1",
    r"\b(PLNDError|FamilyError)\b": "NeuronSelectError",
    r"from (?:peft_plnd\.tuner|plnd(?:\.models|\.neurons)?)\.(\w+) import": r"from .\1 import",
    r"  # type: ignore(\[[\w, -]+\])?": "",
}
REPLACED = {
    "; detection and deactivation": ", which is not supported:",
    " take it so (docs/larger.md), nothing else does: load it without": " load it without",
}
"""Words about what surrounds the tuner here."""

_CASES = "\n".join(
    f'    ("Vanilla MLP {number} NeuronSelect", "MLP", NeuronSelectConfig, {arguments}),'
    for number, arguments in enumerate(
        (
            '{"fraction": 0.5, "target_modules": "lin0"}',
            '{"fraction": 0.5, "target_modules": ["lin0"]}',
            '{"fraction": 0.5, "target_modules": ["lin1"]}',
            '{"fraction": 0.5, "target_modules": ["lin0", "lin1"]}',
            '{"fraction": 0.5, "target_modules": ["lin0"], "modules_to_save": ["lin1"]}',
            '{"neurons": {"lin0": {"out": [0, 3, 19], "in": [1, 2, 9]}, "lin1": {"in": [0, 5, 13]}}}',
        ),
        start=1,
    )
)
_SAME = '{"fraction": 0.5, "target_modules": ["lin0"], "init_weights": False}'
_OTHER = '{"fraction": 0.5, "target_modules": ["lin1"], "init_weights": False}'
_MULTIPLE = "".join(
    f'    (\n        "NeuronSelect {name}",\n        "neuron_select",\n        NeuronSelectConfig,\n        {_SAME},\n'
    f"        {second},\n    ),\n"
    for name, second in (("Same", _SAME), ("Different", _OTHER))
)
_TITLE = "    ################\n    # NeuronSelect #\n    ################\n"
_IMPORTED = ("    OFTConfig,\n", "    NeuronSelectConfig,\n")


def _task(name: str) -> tuple[str, str]:
    """A row of the matrices of language models, before SHiRA's."""
    arguments = f'{{"task_type": "{name}", "target_modules": None, "fraction": 0.1}}'
    row = f"    (\n        NeuronSelectConfig,\n        {arguments},\n"
    return ('    (\n        ShiraConfig,\n        {\n            "r": 1,\n', f"{row}    ),\n")


INSERTED: dict[str, tuple[tuple[str, str], ...]] = {
    "src/peft/utils/peft_types.py": (
        ("    - OFT\n", "    - NEURON_SELECT\n"),
        ('    OFT = "OFT"\n', '    NEURON_SELECT = "NEURON_SELECT"\n'),
    ),
    "src/peft/tuners/__init__.py": (
        ("from .oft import OFTConfig", "from .neuron_select import NeuronSelectConfig, NeuronSelectModel\n"),
        ('    "OFTConfig",\n', '    "NeuronSelectConfig",\n    "NeuronSelectModel",\n'),
    ),
    "src/peft/__init__.py": (
        ("    OFTConfig,\n", "    NeuronSelectConfig,\n    NeuronSelectModel,\n"),
        ('    "OFTConfig",\n', '    "NeuronSelectConfig",\n    "NeuronSelectModel",\n'),
    ),
    "docs/source/_toctree.yml": (
        (
            "      - local: package_reference/oft\n",
            "      - local: package_reference/neuron_select\n        title: Neuron-select\n",
        ),
    ),
    "tests/test_config.py": (_IMPORTED, ("    (OSFConfig, {}),\n", "    (NeuronSelectConfig, {}),\n")),
    "tests/test_custom_models.py": (
        _IMPORTED,
        ("    #########\n    # SHiRA #\n    #########\n", f"{_TITLE}{_CASES}\n"),
        ('    (\n        "SHiRA Same",\n', _MULTIPLE),
    ),
    "tests/test_decoder_models.py": (_IMPORTED, _task("CAUSAL_LM")),
    "tests/test_encoder_decoder_models.py": (_IMPORTED, _task("SEQ_2_SEQ_LM")),
    "tests/test_feature_extraction_models.py": (_IMPORTED, _task("FEATURE_EXTRACTION")),
    "tests/test_seq_classifier.py": (_IMPORTED, _task("SEQ_CLS")),
    "tests/test_quantization.py": (
        ("ShiraConfig, VeraConfig, get_peft_model\n", "NeuronSelectConfig, "),
        (
            '    (\n        ShiraConfig,\n        {"r": 8, "random_seed": 42},\n',
            "    (\n        NeuronSelectConfig,\n"
            '        {"fraction": 0.01, "target_modules": ["q_proj", "v_proj"]},\n    ),\n',
        ),
    ),
}
"""Files of PEFT's, and what comes before which of their lines."""


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peft", type=Path, help="a checkout of PEFT; a folder with src/peft does")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    try:
        for path in write(args.peft, args.output):
            print(path)
    except PLNDError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None


def write(checkout: Path, output: Path) -> list[Path]:
    """Writes each new and each changed file, and the patch that makes them.

    Args:
        checkout: with PEFT's tree.
        output: a folder that is new, or empty.

    Returns:
        what was written.

    Raises:
        PLNDError: if the checkout is none, has the method already, or lacks a line that something is put before; or
            there is something in the output folder. Nothing is written then.
    """
    if not (checkout / "src/peft/tuners").is_dir():
        raise PLNDError(f"{checkout}: expected a checkout of PEFT, with src/peft/tuners")
    if (checkout / METHOD).exists():
        raise PLNDError(f"{checkout}: {METHOD} is there already: give a checkout without it")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PLNDError(f"{output}: expected a new folder")
    before = {path: (checkout / path).read_text(encoding="utf-8") for path in INSERTED if (checkout / path).exists()}
    after = {path: inserted(path, text) for path, text in before.items()} | new_files(checkout)
    changes = "".join(difference(path, before.get(path), text) for path, text in sorted(after.items()))
    written = []
    for path, text in {**after, "neuron_select.patch": changes}.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_text(text, encoding="utf-8")
        written.append(output / path)
    return written


def new_files(checkout: Path) -> dict[str, str]:
    """Path in PEFT's tree to the text of each file that is new there."""
    made = {f"{METHOD}/{name}": LICENCE + text for name, text in {**tuner(), **WRITTEN}.items()}
    for top in ("docs", "tests"):
        if (checkout / top).is_dir():
            paths = (path for path in sorted((ROOT / "upstream" / top).rglob("*")) if path.suffix in (".md", ".py"))
            made |= {path.relative_to(ROOT / "upstream").as_posix(): path.read_text(encoding="utf-8") for path in paths}
    if (checkout / COMPARISON).parent.is_dir():
        made |= {f"{COMPARISON}/{name}": text for name, text in comparison()}
    return made


def tuner() -> dict[str, str]:
    """The method's files, by name, as they are in PEFT's tree, without the licence."""
    return {name: translated((ROOT / source).read_text(encoding="utf-8")) for name, source in SOURCES.items()}


def translated(source: str) -> str:
    """A source of ours with PEFT's names and relative imports, each imported once."""
    for old, new in REPLACED.items():
        source = source.replace(old, new)
    for pattern, new in RENAMED.items():
        source = re.sub(pattern, new, source)
    lines: list[str] = []
    for line in source.splitlines(keepends=True):
        if not (line.startswith("from .") and line in lines):
            lines.append(_once(line) if line.startswith("from .") else line)
    return "".join(lines)


def _once(line: str) -> str:
    """An import whose names, two of which became one, are there once."""
    head, _, names = line.strip().partition(" import ")
    return f"{head} import {', '.join(dict.fromkeys(names.split(', ')))}\n"


def comparison() -> Iterator[tuple[str, str]]:
    """The settings for PEFT's benchmark, with the arguments that the method has there."""
    known = {one.name for one in fields(RowColumnConfig)}
    folder = ROOT / COMPARISON
    for path in sorted(folder.rglob("*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "adapter_config.json":
            said = {name: value for name, value in said.items() if name in known}
        yield path.relative_to(folder).as_posix(), json.dumps(said, indent=2, sort_keys=True) + "\n"


def inserted(path: str, text: str) -> str:
    """A file of PEFT's with our lines in it.

    Raises:
        PLNDError: if one of the lines that they come before is not there exactly once.
    """
    for before, new in INSERTED[path]:
        places = [match.start() for match in re.finditer(re.escape(before), text)]
        places = [place for place in places if before[0] != " " or text[place - 1] == "\n"]
        if len(places) != 1:
            raise PLNDError(f"{path}: {before.strip()!r} is there {len(places)} times, expected once: another PEFT")
        text = text[: places[0]] + new + text[places[0] :]
    return text


def difference(path: str, before: str | None, after: str) -> str:
    """One file's part of a patch, for `git apply`."""
    old = [] if before is None else before.splitlines(keepends=True)
    named = ("/dev/null" if before is None else f"a/{path}", f"b/{path}")
    return "".join(unified_diff(old, after.splitlines(keepends=True), *named))


if __name__ == "__main__":
    main()
