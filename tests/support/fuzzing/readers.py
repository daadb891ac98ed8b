"""What reads files that were changed, and what it may say: the original, or a refusal in one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fuzzing.mutations import mutated
from fuzzing.processes import command
from fuzzing.workshop import FEW, WRITERS, Workshop

CPU_SECONDS = 10
FINDINGS = ("wrong", "traceback", "hang", "limit", "crash", "lost", "left")


class Hang(BaseException):
    """A file took more CPU time than it may."""


ARTIFACTS = {
    "scores": "Scores",
    "neurons": "NeuronSet",
    "roles": "Roles",
    "means": "Means",
    "directions": "Direction",
    "routings": "Routing",
}
"""Kinds of files that `plnd.load` reads, and what they become."""
OTHERS = (
    *("parts", "checkpoints", "corpora", "settings", "rows", "adapters", "ablations", "evaluations", "runs", "arena"),
    *("profiles", "folders", "old", "results"),
)
"""The other kinds; all of them in `Workshop.kinds`."""
ORIGINALS: dict[Path, Any] = {}
"""What is in whole artifacts."""


def content(artifact: Any) -> Any:
    """What matters of an artifact, to compare."""
    parts = [json.dumps(artifact.metadata, sort_keys=True, default=dict)]
    for name in sorted(vars(artifact)):
        value = vars(artifact)[name]
        if isinstance(value, dict):
            parts += [f"{name}.{key} {_bytes(inner)}" for key, inner in sorted(value.items())]
        elif hasattr(value, "tobytes"):
            parts.append(f"{name} {_bytes(value)}")
    return parts


def _bytes(value: Any) -> str:
    return hashlib.sha256(value.tobytes()).hexdigest() if hasattr(value, "tobytes") else repr(value)


def said_by(arguments: Sequence[str]) -> tuple[int, str]:
    """The status of a command line in this process and its lines on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = command(*arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, err.getvalue()


def read_artifact(path: Path, original: Path, w: Path, chance: random.Random) -> str:
    """A mutated artifact through its reader and one command."""
    from plnd.any_artifact import load

    if original not in ORIGINALS:
        ORIGINALS[original] = content(load(original))
    before = ORIGINALS[original]
    commands = [["show", path], ["show", path, "--json"]]
    commands += [["verify", path, "--model", w / "model"]] if (w / "model").exists() else []
    commands += [["push", path, "user/repo"], ["steered", path, "--output", path.with_name("o.pt")]]
    commands += [["select", path, "--top-k", "2", "--output", path.with_name("o")]]
    commands += [
        ["combine", path, "--minus", path, "--output", path.with_name("o")],
        ["overlap", path],
        ["layers", path],
    ]
    status, said = said_by([str(word) for word in chance.choice(commands)])
    try:
        found = content(load(path))
    except Exception as error:
        check_line(error)
        if not status:
            raise AssertionError(f"a command accepts what the reader refuses: {error}") from None
        return "refused"
    if status and len(said.splitlines()) != 1:
        raise AssertionError(f"{len(said.splitlines())} lines: {said}")
    if found == before:
        return "equal"
    return "wrong" if has_digest(original) else "unchecked"


def read_part(path: Path, original: Path, w: Path, chance: random.Random) -> str:
    """A mutated part through its reader, and merged with the other one."""
    from plnd.detection.part import Part

    out = path.with_name("merged")
    out.unlink(missing_ok=True)
    parts = [path, w / "made/shard/2.part"]
    chance.shuffle(parts)
    merged = by_command("merge", *parts, "--output", out)
    try:
        found = Part.load(path).to_bytes()
    except Exception as error:
        check_line(error)
        if merged == "accepted" or out.exists():
            raise AssertionError(f"merged what the reader refuses: {error}") from None
        return "refused"
    return "equal" if found == original.read_bytes() else "wrong"


def read_checkpoint(path: Path, original: Path, w: Path, chance: random.Random) -> str:
    """A mutated checkpoint."""
    from plnd.detection.checkpoint import Checkpoint

    try:
        found = Checkpoint.load(path)
    except Exception as error:
        check_line(error)
        return "refused"
    found.save(path.with_name("o"))
    return "equal" if path.with_name("o").read_bytes() == original.read_bytes() else "wrong"


def has_digest(path: Path) -> bool:
    """Whether a file says the digest of its own content."""
    header = path.read_bytes()[:100_000]
    return b"content_sha256" in header or b"checksum" in header


def check_line(error: Exception) -> None:
    """A refusal is plnd's own error, in one line, and not for want of memory; raises any other."""
    from plnd.errors import PLNDError

    if not isinstance(error, PLNDError) or len(str(error).splitlines()) != 1:
        raise error


def accepted(read: Callable[[], Any]) -> str:
    """A reader of what may well be something else after a mutation."""
    try:
        read()
    except Exception as error:
        check_line(error)
        return "refused"
    return "accepted"


def by_command(*arguments: object) -> str:
    """The same of a command."""
    status, said = said_by([str(word) for word in arguments])
    said = "".join(part for part in said.splitlines(keepends=True) if "%|" not in part)  # bars
    lines = [line for line in said.splitlines() if line and not line.startswith("warning: ")]
    if status not in (0, 2) or status == 2 and len(lines) != 1:
        raise AssertionError(f"status {status}: {said}")
    return "refused" if status else "accepted"


def read_other(kind: str, path: Path, original: Path, w: Path, chance: random.Random) -> str:
    """A mutated file of a kind that has no digest, beside unchanged ones where it is one of a folder."""
    if kind == "corpora":
        from plnd.io.corpus import read_documents

        return accepted(lambda: [None for _ in read_documents(str(path))])
    if kind == "settings":
        from lm_eval_plnd.experiments.settings import load_settings

        return accepted(lambda: load_settings(path))
    if kind == "rows":
        return read_row(path, w, chance)
    if kind == "adapters":
        return read_adapter(path, original, w)
    if kind == "evaluations":
        return by_command("push", w / "hand.neurons", "user/repo", "--evaluation", path)
    if kind in ("ablations", "runs"):
        return read_unfinished(path, original, w, "ablate" if kind == "ablations" else "experiment")
    if kind == "profiles":
        return by_command("explore", path, "--output", path.with_name("o"))
    if kind == "old":
        return by_command("convert", path, "--model", w / "model", "--output", path.with_name("o"))
    if kind == "results" and original.parent == w:
        return by_command("card", path, "--output", path.with_name("o"))
    if kind == "arena":
        return read_in_arena(path, original, w)
    whole = w / "made/export" if kind == "folders" else w / "made/experiment/run"
    folder = path.with_name("folder")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, copy_function=os.link)
    place = folder / original.relative_to(whole)
    place.unlink()
    os.rename(path, place)
    if kind == "results":
        return by_command(*chance.choice((["report", folder, "--output", path], ["card", folder, "--output", path])))
    mask = w / "made/select/zh.neurons"
    shutil.rmtree(path.with_name("o"), ignore_errors=True)
    if chance.random() < 0.5:
        return by_command("verify", mask, "--model", folder)
    return by_command("export", "--mask", mask, "--model", folder, "--output", path.with_name("o"))


def read_row(path: Path, w: Path, chance: random.Random) -> str:
    """A mutated row; now and then of a model that it may be of, to whose twin it is held."""
    from plnd.models import accepted as rows
    from plnd.probing.rows import accept_family, read_row

    config = w / "biogpt" / "config.json"
    if not config.exists() or chance.random() < 0.9:
        return accepted(lambda: read_row(path))
    try:
        return accepted(lambda: accept_family(path, config.parent))
    finally:
        rows.forget()


def read_adapter(path: Path, original: Path, w: Path) -> str:
    """A mutated file of an adapter: what plnd refuses of it is one line; what PEFT refuses before, PEFT's."""
    from peft import PeftModel

    import peft_plnd
    import plnd
    from lm_eval_plnd.deactivations import read_deactivation
    from plnd.models.loading import load_model

    folder = replaced(original.parent, path, original)
    accepted(lambda: read_deactivation({}, str(folder)).base_model())
    peft_plnd.register()
    model = load_model(str(w / "model"), device="cpu")
    try:
        PeftModel.from_pretrained(model, str(folder))
    except Exception as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if any(last.is_relative_to(Path(package.__file__).parent) for package in (plnd, peft_plnd)):
            check_line(error)
        return "refused"
    return "accepted"


def read_unfinished(path: Path, original: Path, w: Path, name: str) -> str:
    """A mutated file of a folder that a command continues."""
    whole = w / "made" / name / ("run" if name == "experiment" else name)
    folder = replaced(whole, path, original)
    arguments = WRITERS[name].format(m=w / "model", w=w, n=w / "made/select/zh.neurons", out=path.parent).split()
    return by_command(*arguments[:-1], folder)


def replaced(whole: Path, path: Path, original: Path) -> Path:
    """A copy of a folder, with a mutated file in the place of the original."""
    folder = path.with_name("folder")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    os.replace(path, folder / original.relative_to(whole))
    return folder


def read_in_arena(path: Path, original: Path, w: Path) -> str:
    """A mutated file among those of a comparison that goes on."""
    from plnd.models.loading import disable_progress_bars

    disable_progress_bars()
    whole, folder = w / "made/arena/arena", path.with_name("arena")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, copy_function=os.link)
    place = folder / original.relative_to(whole)
    place.unlink()
    os.rename(path, place)
    arguments = WRITERS["arena"].format(m=w / "model", w=w, few=FEW, out=path.parent).split()
    return by_command(*arguments)


def one_load(
    number: int, seed: int, kinds: Sequence[str], shop: Workshop, folder: Path, keep: Path | None
) -> dict[str, str]:
    """Mutates one file, reads it, and says what happened."""
    chance = random.Random(f"{seed}:{number}")
    kind = chance.choice(kinds)
    original = chance.choice(shop.kinds[kind])
    others = [chance.choice(paths).read_bytes() for paths in shop.kinds.values()]
    data = mutated(original.read_bytes(), chance, others)
    path = folder / f"case{''.join(original.suffixes)}"
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    problem = ""
    try:
        readers = dict.fromkeys(ARTIFACTS, read_artifact)
        readers |= {"parts": read_part, "checkpoints": read_checkpoint}
        read = readers.get(kind, lambda *rest: read_other(kind, *rest))
        what = "equal" if data == original.read_bytes() else read(path, original, shop.folder, chance)
    except Hang:
        what, problem = "hang", f"more than {CPU_SECONDS} s"
    except MemoryError:
        what = "limit"
    except BaseException as error:
        what, problem = "traceback", "".join(traceback.format_exception(error)[-6:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if what in FINDINGS and keep is not None:
        (keep / f"{number}{original.suffix}").write_bytes(data)
    return {"kind": kind, "file": original.name, "what": what, "problem": problem}
