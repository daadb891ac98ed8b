"""Follows the README word for word on a machine that has nothing yet, and says how long each block took.

    python scripts/follow_readme.py --folder readme --model gemma --corpora corpora

Clones the last commit, makes an empty environment for each block that installs, and types the README's blocks in their
order, as they stand there; the Python goes into one program. Beside the minutes that went by stand those that
processors worked, which other work on the machine does not change. Packages come from pip's own index. What the
commands take from the Hugging Face hub comes from a stand-in of it on this machine, which the hub's own client is sent
to (`HF_ENDPOINT`): under its names, the model of a folder, and the first documents of `{language}.jsonl` of another as
the Parquet file that Wikipedia is there. Sets are found on the first 40 of them and evaluated on the last half.

The last block is the whole test suite; pytest heeds `PYTEST_ADDOPTS`. Takes 3 GB of disk for each environment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
from hub import COMMIT, Answering  # noqa: E402

MODEL, CORPUS = "google/gemma-3-270m", "wikimedia/wikipedia"


# the hub


class Hub(ThreadingHTTPServer):
    """Repositories to folders: what a client needs to list and download them."""

    def __init__(self, models: dict[str, Path], data_sets: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders = {"models": models, "datasets": data_sets}

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://localhost:{self.server_address[1]}"


class Handler(Answering):
    """Answers one request; whatever else a client likes to know is not found."""

    server: Hub

    def folder(self, kind: str, user: str, name: str) -> Path | None:
        """Where a repository is."""
        return self.server.folders[kind].get(f"{user}/{name}")

    def do_GET(self) -> None:
        """/api/models/user/name[/tree/revision/folder], /[datasets/]user/name/resolve/revision/file."""
        path = unquote(self.path.partition("?")[0]).strip("/")
        if match := re.fullmatch(r"api/(models|datasets)/([^/]+)/([^/]+)(?:/revision/[^/]+)?", path):
            return self.describe(*match.groups())
        if match := re.fullmatch(r"api/(models|datasets)/([^/]+)/([^/]+)/tree/[^/]+(?:/(.+))?", path):
            kind, user, name, below = match.groups()
            return self.list(self.folder(kind, user, name), below or "")
        if match := re.fullmatch(r"(datasets/)?([^/]+)/([^/]+)/resolve/[^/]+/(.+)", path):
            data_set, user, name, file = match.groups()
            return self.send(self.folder("datasets" if data_set else "models", user, name), file)
        return self.answer(404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """/api/models/user/name/paths-info/revision: what some paths are."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).get("paths", [])
        match = re.fullmatch(r"/api/(models|datasets)/([^/]+)/([^/]+)/paths-info/[^/]+", self.path)
        folder = self.folder(*match.groups()) if match else None
        if folder is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        self.reply([entry(folder, folder / path) for path in asked if (folder / path).exists()])

    def describe(self, kind: str, user: str, name: str) -> None:
        """What a repository is."""
        folder = self.folder(kind, user, name)
        if folder is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        files = [{"rfilename": path.relative_to(folder).as_posix()} for path in folder.rglob("*") if path.is_file()]
        self.reply({"id": f"{user}/{name}", "sha": COMMIT, "private": False, "tags": [], "siblings": files})

    def list(self, folder: Path | None, below: str) -> None:
        """What a folder of a repository holds."""
        if folder is None or not (folder / below).is_dir():
            return self.answer(404, X_Error_Code="EntryNotFound" if folder else "RepoNotFound")
        found = (folder / below).rglob("*") if "recursive=true" in self.path.lower() else (folder / below).iterdir()
        self.reply([entry(folder, path) for path in sorted(found)])

    def send(self, folder: Path | None, name: str) -> None:
        """A file, or the bytes of it that are asked for."""
        if folder is None or not (folder / name).is_file():
            return self.answer(404, X_Error_Code="EntryNotFound" if folder else "RepoNotFound", X_Repo_Commit=COMMIT)
        whole = (folder / name).read_bytes()
        common = {"ETag": f'"{entry(folder, folder / name)["oid"]}"', "X_Repo_Commit": COMMIT}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(whole)), len(whole) - 1)
            part = f"bytes {start}-{end}/{len(whole)}"
            return self.answer(206, whole[start : end + 1], Content_Range=part, **common)
        self.answer(200, whole, Accept_Ranges="bytes", **common)


def entry(folder: Path, path: Path) -> dict[str, object]:
    """A file or folder as the hub lists it; ids are of names and sizes, since files do not change meanwhile."""
    name, kind = path.relative_to(folder).as_posix(), "file" if path.is_file() else "directory"
    size = path.stat().st_size if path.is_file() else 0
    return {"type": kind, "path": name, "size": size, "oid": sha256(f"{name} {size}".encode()).hexdigest()[:40]}


@contextmanager
def hub(model: Path, corpora: Path, documents: int, folder: Path) -> Iterator[str]:
    """The address of a hub with the model and the data set that the README names; `folder` keeps the latter's files."""
    configs = []
    for path in sorted(corpora.glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in islice(path.open(encoding="utf-8"), documents)]
        name = f"20231101.{path.stem}"
        configs += [f"- config_name: {name}", f"  data_files: {name}/*.parquet"]
        (folder / name).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / name / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    server = Hub({MODEL: model}, {CORPUS: folder})
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.address
    finally:
        server.shutdown()
        server.server_close()


# the reader


class Reader:
    """Types what the README has, in a clone of the repository.

    Args:
        folder: for the clone, environments and what is downloaded.
        hub: the address of the hub.
        repository: what is cloned.
    """

    def __init__(self, folder: Path, hub: str, repository: Path = ROOT) -> None:
        self.folder, self.clone = folder, folder / "plnd"
        own = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1"}
        gone = ("PYTHONPATH", "VIRTUAL_ENV", "HF_TOKEN", "HF_HUB_OFFLINE")
        self.variables = {key: value for key, value in os.environ.items() if key not in gone} | own
        subprocess.run(["git", "clone", "--quiet", str(repository), str(self.clone)], check=True)

    def new_environment(self) -> None:
        """An empty one, in which what follows runs."""
        place = self.folder / f"environment{len(list(self.folder.glob('environment*')))}"
        venv.create(place, with_pip=True)
        self.variables["PATH"] = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def types(self, *command: str) -> str:
        """Runs a command in the clone; returns minutes, and minutes of all processors.

        Raises:
            CalledProcessError: if it ends badly.
        """
        started, before = time.monotonic(), _processors()
        subprocess.run(command, cwd=self.clone, env=self.variables, check=True)
        return f"{(time.monotonic() - started) / 60:6.1f} minutes ({(_processors() - before) / 60:.1f} of processors)"


def _processors() -> float:
    """Seconds that the commands' processes have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def follow(reader: Reader) -> Iterator[tuple[str, str]]:
    """Runs every block of the README; yields its first line, and how long it took."""
    blocks = re.findall(
        r"^```(sh|python)\n(.*?)^```$", (reader.clone / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    program = "".join(block for language, block in blocks if language == "python")
    for language, block in blocks:
        if language == "sh":
            if block.startswith("pip install"):
                reader.new_environment()
            yield block.partition("\n")[0], reader.types("bash", "-euo", "pipefail", "-c", block)
        elif program.startswith(block):
            yield "Python, all blocks", reader.types("python", "-c", program)


def main() -> None:
    """Parses arguments, follows, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="a new folder for all that is made")
    parser.add_argument("--model", required=True, type=Path, help=f"folder that stands for {MODEL}")
    parser.add_argument("--corpora", required=True, type=Path, help=f"folder of {{language}}.jsonl, for {CORPUS}")
    parser.add_argument(
        "--documents",
        type=int,
        default=1000,
        help="of each language (default: 1000; sets are evaluated on others from 80 on)",
    )
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True)
    said = [f"Python {platform.python_version()}, {os.cpu_count()} cores, {args.documents} documents a language"]
    with hub(args.model.resolve(), args.corpora.resolve(), args.documents, folder / "corpus") as address:
        try:
            for name, took in follow(Reader(folder, address)):
                said.append(f"{took}  {name}")
                print(said[-1], flush=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"status {error.returncode}: {error.cmd[-1]}")
    print("", *said, sep="\n")


if __name__ == "__main__":
    main()
