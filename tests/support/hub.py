"""A small Hugging Face hub on this machine: what its own client asks for to download files and to commit some."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "a" * 40
"""The one commit that there always is; `main` is another name of it."""
PROGRAM = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from plnd.commands.main import main

for line in sys.stdin:
    said, words = StringIO(), json.loads(line)
    with redirect_stdout(said), redirect_stderr(said):
        status = main(words)
    print(json.dumps([status, said.getvalue()]), flush=True)
"""


def commands(folder: Path, endpoint: str, *typed: list[str]) -> list[tuple[int, str]]:
    """Exit status and output of plnd's commands, in one process of its own, whose hub is at an address."""
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_TOKEN": "secret", "HF_HUB_DISABLE_XET": "1"}
    ours |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input="\n".join(map(json.dumps, typed)), capture_output=True, text=True,
        cwd=folder, env=os.environ | ours, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


class Hub(ThreadingHTTPServer):
    """Repositories as dictionaries; `sizes` lies about a file's size where it has one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.sizes: dict[str, int] = {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answering(BaseHTTPRequestHandler):
    """How a hub answers one request."""

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Sends a status, headers (`_` for `-`) and a body."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply(self, value: object, status: int = 200) -> None:
        """Sends JSON."""
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")


class Handler(Answering):
    """What one of repositories in memory answers."""

    server: Hub

    def do_GET(self) -> None:
        """A file, as `hf_hub_download` asks for it: /user/repo/resolve/revision/file."""
        parts = self.path.lstrip("/").split("?")[0].split("/", 4)
        if len(parts) < 5:
            return self.answer(404)  # whatever else the client likes to know
        user, repo, verb, revision, file = parts
        files = self.server.repositories.get(f"{user}/{repo}")
        if files is None or verb != "resolve":
            return self.answer(401 if files is None else 404, X_Error_Code="RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if file not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        tag, size = hashlib.sha256(files[file]).hexdigest(), self.server.sizes.get(file, len(files[file]))
        self.answer(200, files[file], ETag=f'"{tag}"', X_Repo_Commit=COMMIT, Content_Length=str(size))

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """A repository is made, a card checked, an upload announced, files committed."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            there = name in self.server.repositories
            self.server.repositories.setdefault(name, {})
            return self.reply({"url": f"{self.server.address}/{name}"}, 409 if there else 200)
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        _, _, _, user, repo, verb, _ = self.path.split("/")
        if verb == "preupload":
            files = [file["path"] for file in json.loads(data)["files"]]
            return self.reply({"files": [{"path": x, "uploadMode": "regular", "shouldIgnore": False} for x in files]})
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[f"{user}/{repo}"][line["value"]["path"]] = content
        self.reply({"commitUrl": f"{self.server.address}/{user}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A hub that runs."""
    hub = Hub()
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
