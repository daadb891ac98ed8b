"""Hostile files, kills, full disks and threads: nothing is lost, nothing is let in, and nothing ends in a traceback.

    python scripts/fuzz.py --minutes 30               # the campaign: counts for each part, status 1 on a finding
    python scripts/fuzz.py --minutes 1 --parts loads --kinds scores neurons --seed 7

`loads` mutates files of every kind that plnd reads and hands them to their reader and to a command; a refusal is one
line, and what is read is the original, or the file was of a kind without a digest. `kills` ends every writing command
at a random moment by one of several signals, looks at what is there, and runs it again to the same bytes. `disks`
fills the disk at a random byte. `threads` writes, reads and detects side by side. Everything happens in forked
processes, with 512 MiB beyond what the libraries take and ten seconds of CPU time for each file. Needs Linux and the
repository; a seed gives the same mutations, and --keep the files that something was found with.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from handmade import importance_matrix, make_neurons, make_scores  # noqa: E402

MEMORY = 2**29
CPU_SECONDS = 10
BATCH = 50
PARTS = ("loads", "kills", "disks", "threads")
SHARE = {"loads": 0.55, "kills": 0.3, "disks": 0.1, "threads": 0.05}
GROWS = ("results.csv", "log.jsonl", "environment.json", "settings.yaml", ".lock", ".checkpoint")
"""Ends of names that may have other bytes while a command is not at its end, and need not be those of another run."""


# what runs in a process of its own


@dataclass
class Outcome:
    """What became of a forked process: its status as the shell counts, negative for a signal, and what it said."""

    status: int
    text: str
    seconds: float
    hung: bool


def forked(
    action: Callable[[], int], *, limit: float = 600, kill: Sequence[int] = (), after: float = 0, **limits: int
) -> Outcome:
    """Runs an action in a fork; its output comes through a pipe, which no full disk stops.

    Args:
        action: returns the status.
        limit: seconds; what takes longer is killed and has hung.
        kill: signals to send, a hundredth of a second apart.
        after: seconds until the first.
        limits: of resources, `AS` or `FSIZE` to bytes.
    """
    reading, writing = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            for stream in (1, 2):
                os.dup2(writing, stream)
            os.close(reading)
            sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
            sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the program does
            for name, most in limits.items():
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
            status = 70
            try:
                status = action()
            except SystemExit as stop:
                status = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        finally:
            os._exit(71)
    os.close(writing)
    said, pending, hung, status = bytearray(), list(kill), False, None
    while status is None:
        now = time.monotonic() - began
        if pending and now >= after:
            with suppress(ProcessLookupError):
                os.kill(child, pending.pop(0))
            after += 0.01
        if now > limit:
            hung = True
            os.killpg(child, signal.SIGKILL)
        wait = after - now if pending else 0.5
        if select.select([reading], [], [], max(0, min(wait, 0.5)))[0]:
            part = os.read(reading, 2**16)
            said += part
            if part:
                continue
        done, code = os.waitpid(child, 0 if hung else os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        elif not pending:
            time.sleep(0.002)
    while select.select([reading], [], [], 0)[0] and (part := os.read(reading, 2**16)):
        said += part
    os.close(reading)
    return Outcome(status, said.decode(errors="replace"), time.monotonic() - began, hung)


def command(*arguments: str) -> int:
    """The status of a command line; what killed processes left may be removed at once."""
    from plnd.commands.main import main
    from plnd.io import files

    files.FRESH_SECONDS = 0
    return main(arguments)


def address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


# what is mutated


@dataclass
class Workshop:
    """A folder with a model, corpora, and a whole file of every kind, made by the command lines themselves."""

    folder: Path
    kinds: dict[str, list[Path]] = field(default_factory=dict)

    def arguments(self, argv: str, out: Path) -> list[str]:
        """The words of a command line."""
        neurons = self.folder / "made" / "select" / "zh.neurons"
        return argv.format(w=self.folder, m=self.folder / "model", n=neurons, few=FEW, out=out).split()

    def make(self, argv: str, out: Path) -> None:
        """Runs a command line, or ends the campaign."""
        arguments = self.arguments(argv, out)
        done = forked(lambda: command(*arguments))
        if done.status:
            raise SystemExit(f"plnd {argv}: status {done.status}\n{done.text}")

    def make_artifacts(self) -> None:
        """Scores and neurons by hand, and files that are no artifacts; none needs a model."""
        w = self.folder
        for language, seed in (("zh", 0), ("en", 1)):
            scores = make_scores(importance_matrix(seed=seed), language=language)
            scores.save(w / f"{language}.scores")
        make_scores(importance_matrix(), version=1).save(w / "old.scores")
        make_neurons({"0.up_proj": [1, 2, 5], "1.q_proj": [0, 3], "1.down_proj": [7]}).save(w / "hand.neurons")
        texts = [
            "Ein Satz, der lang genug ist.",
            "两个句子。还有一个，更长一些的句子。",
            "Три слова и ещё несколько слов.",
        ]
        lines = "".join(json.dumps({"id": n, "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts))
        forms = {
            "txt": "\n".join(texts),
            "jsonl": lines,
            "csv": "id,text\n" + "".join(f'{n},"{t}"\n' for n, t in enumerate(texts)),
        }
        forms["json"] = json.dumps([{"text": text} for text in texts])
        for ending, content in forms.items():
            (w / f"corpus.{ending}").write_text(content, encoding="utf-8")
        (w / "corpus.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        settings = Path(__file__).resolve().parent / "settings" / "demo.yaml"
        shutil.copy(settings, w / "demo.yaml")
        self.kinds = {
            "scores": [w / "zh.scores", w / "old.scores"],
            "neurons": [w / "hand.neurons"],
            "corpora": sorted(w.glob("corpus.*")),
            "settings": [w / "demo.yaml"],
        }

    def make_runs(self, everything: bool) -> None:
        """A model, scores and neurons of it, and what every other writing command makes."""
        w = self.folder
        done = forked(lambda: make_model(w))
        if done.status:
            raise SystemExit(done.text)
        for name in MADE_FIRST if everything else MADE_FIRST[:2]:
            out = w / "made" / name
            out.mkdir(parents=True)
            self.make(WRITERS[name], out)
        old = {
            "a.txt": "{0: {1, 3}, 1: set()}\n" * 2 + "{0: set(), 1: {5}}\n{0: {0, 8}, 1: {1}}\n{0: {2}, 1: {3}}\n",
            "a.json": json.dumps(
                {f"{name}": {"0": [1, 2]} for name in ("fwd_up", "fwd_down", "attn_q", "attn_k", "attn_v", "attn_o")}
            ),
        }
        for name, text in old.items():
            (w / name).write_text(text)
        off = {"mask": "zh.neurons", "mask_sha256": "0" * 64, "language": "zh", "counts": {"up_proj": 3}}
        off |= {"regions": None, "under": None, "gen": None, "control": None, "seed": 0}
        results = {
            "results": {"task": {"alias": "task", "acc,none": 0.5, "acc_stderr,none": 0.1}},
            "configs": {"task": {"task": "task", "metadata": {"version": 1}}},
            "config": {"model": "plnd", "model_args": {"pretrained": "some/model"}, "plnd": off},
            "n-samples": {"task": {"original": 4, "effective": 4}},
        }
        (w / "results_2025.json").write_text(json.dumps(results))
        if everything:
            self.make(WRITERS["export"], w / "made")
            self.find_kinds()

    def find_kinds(self) -> None:
        """The files of every kind among what was made."""
        w = self.folder
        run = w / "made" / "experiment" / "run"
        samples = sorted((run / "samples").iterdir())
        self.kinds |= {
            "scores": [*self.kinds["scores"], w / "made/detect/zh.scores"],
            "neurons": [*self.kinds["neurons"], w / "made/select/zh.neurons"],
            "roles": [w / "made/roles/x.roles"],
            "profiles": [w / "made/neuron/n.json"],
            "folders": [path for path in sorted((w / "made/export").iterdir()) if path.name != "tokenizer.json"],
            "old": [w / "a.txt", w / "a.json"],
            "results": [w / "results_2025.json", run / "results.csv", run / "settings.yaml", *samples[:2]],
        }  # fmt: skip


def make_model(w: Path) -> int:
    """A random Llama of two blocks with the demo's tokenizer, and the settings of an experiment on it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from plnd.demo_data import demo_corpus, demo_model

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    tokens = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = LlamaConfig(**shape, **tokens, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(w / "model")
    tokenizer.save_pretrained(w / "model")
    for language in ("en", "zh"):
        lines = (demo_corpus("detect") / "corpora" / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()[:16]
        (w / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    both = [
        [json.loads(line)["text"] for line in (w / f"{x}.jsonl").read_text(encoding="utf-8").splitlines()]
        for x in ("en", "zh")
    ]
    rows = [json.dumps({"en": en[:200], "zh": zh[:100]}, ensure_ascii=False) for en, zh in zip(*both, strict=True)]
    (w / "parallel.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (w / "run.yaml").write_text(SETTINGS.format(w=w))
    return 0


SETTINGS = """
model: {{pretrained: "{w}/model", dtype: float32, device: cpu, batch_size: 2}}
languages: [en, zh]
corpus: "{w}/{{language}}.jsonl"
detection: {{qk: "off", max_documents: 4, max_length: 32}}
rule: {{fraction: 0.1}}
tasks:
  text: {{task: "plnd_text_{{language}}", metadata: {{data_dir: "plnd:corpus/evaluate", text_documents: all}},
         model: {{max_length: 64, add_bos_token: false}}, limit: 2}}
experiments: {{table1: text}}
"""
WRITERS = {
    "detect": "detect --model {m} --corpus {w}/zh.jsonl --language zh --batch-size 2 --resume --output {out}/zh.scores",
    "select": "select {w}/made/detect/zh.scores --fraction 0.2 --output {out}/zh.neurons",
    "combine": "combine {n} --minus {n} --union {n} --output {out}/combined",
    "overlap": "overlap {n} --csv {out}/overlap.csv",
    "export": "export --model {m} --mask {n} --output {out}/export --overwrite",
    "overwrite": "export --model {m} --mask {n} --output {out}/export --overwrite",
    "convert": "convert {w}/a.txt --model {m} --output {out}/converted",
    "roles": "roles --model {m} --parallel {w}/parallel.jsonl --batch-size 2 --output {out}/x.roles --csv {out}/x.csv",
    "lens": "lens --model {m} --corpus {w}/zh.jsonl --language zh --identifier script --csv {out}/lens.csv",
    "neuron": "neuron {n} --corpus zh={w}/zh.jsonl en={w}/en.jsonl --json {out}/n.json --html {out}/n.html",
    "arena": "arena --model {m} --corpora {w} --languages en,zh {few} --output {out}/arena",
    "experiment": "experiment {w}/run.yaml --output {out}/run",
    "report": "report {w}/made/experiment/run --output {out}/report.html",
    "card": "card {w}/results_2025.json --output {out}/README.md",
}
"""Command lines that write, into a folder `out` of their own."""
FEW = "--documents 3 --held-out 3 --samples 1 --max-length 32 --detectors plnd-rank,lape --ablations zero"
LIGHT = {"detect", "select", "combine", "overlap", "export", "overwrite", "convert"}
"""Commands that need no others than themselves."""
MADE_FIRST = ("detect", "select", "roles", "neuron", "experiment")
"""Whose files others read, in this order; the first two by light commands."""


# mutations

NASTY = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[2J", b"\r", b"\n\n", b"'", b'"'),
    *(b"9" * 5000, b"1e999", b"-1", b"0.5", b"NaN", b"null", b"true", b"2147483648", b"18446744073709551616"),
    *(b"{", b"[]", b'""', b"[" * 3000, b'{"a":' * 3000, b"&a [*a, *a]", b"\\ud800", b"!!python/object:os.system"),
    *(b"=1+1", b"../../x", b"<script>", b"%s%n"),
)


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """A file after one or a few mutations; one of a safetensors file may go through its header."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        if len(data) > 8 and data[8:9] == b"{" and chance.random() < 0.4:
            data = with_other_header(data, chance)
        else:
            data = with_other_bytes(data, chance, others)
    return data


def with_other_bytes(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """One mutation that knows no format."""
    start = chance.randrange(len(data) + 1)
    stop = min(len(data), start + int(10 ** chance.uniform(0, 3)))
    other = chance.choice(others)
    kind = chance.randrange(12)
    if kind <= 3 and data:  # one bit, anywhere or among the first
        place = chance.randrange(len(data)) if kind else chance.randrange(min(len(data), 400))
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    return {
        4: lambda: data[:start],
        5: lambda: data[:start] + data[stop:],
        6: lambda: data[:start] + bytes(stop - start) + data[stop:],
        7: lambda: data[:stop] + data[start:],
        8: lambda: data[:start] + chance.choice(NASTY) + data[start:],
        9: lambda: data[:start] + chance.choice(NASTY) + data[stop:],
        10: lambda: data[:start] + other[min(start, len(other)) :],
        11: lambda: data + chance.choice(NASTY),
    }.get(kind, lambda: data[:start] + chance.randbytes(stop - start) + data[stop:])()


def with_other_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says something else, in JSON that is whole."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        said = json.loads(header["__metadata__"]["plnd"])
    except (ValueError, KeyError, TypeError):
        return data[: chance.randrange(len(data))]
    inner = chance.random() < 0.7
    changed = said if inner else header
    while True:  # to a random place within
        keys = list(changed) if isinstance(changed, dict) else list(range(len(changed)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(changed[key], (dict, list)) and changed[key] and chance.random() < 0.8:
            changed = changed[key]
            continue
        values = (
            None,
            -1,
            0,
            1,
            2**31,
            2**64,
            10**400,
            0.5,
            "",
            "x",
            "é\ud800"[:1],
            [],
            {},
            [[[]]],
            True,
            "I64",
            [0, 8],
            1e308,
        )
        if chance.random() < 0.2:
            del changed[key]
        else:
            changed[key] = chance.choice(values)
        break
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if inner and chance.random() < 0.2:
        text = text[:-1] + f',"{chance.choice(list(said or ["a"]))}":{chance.choice(("0", "[]", "null"))}}}'
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["plnd"] = text
    new = json.dumps(header, ensure_ascii=False).encode(errors="replace")
    return len(new).to_bytes(8, "little") + new + data[8 + length :]


# what reads them


class Hang(BaseException):
    """A file took more CPU time than it may."""


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
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
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
    if kind == "profiles":  # which nobody reads back
        return by_command("show", path)
    if kind == "old":
        return by_command("convert", path, "--model", w / "model", "--output", path.with_name("o"))
    if kind == "results" and original.parent == w:
        return by_command("card", path, "--output", path.with_name("o"))
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
        artifact = kind in ("scores", "neurons", "roles")
        read = read_artifact if artifact else lambda *rest: read_other(kind, *rest)
        what = "equal" if data == original.read_bytes() else read(path, original, shop.folder, chance)
    except Hang:
        what, problem = "hang", f"more than {CPU_SECONDS} s"
    except MemoryError:
        what = "limit"
    except BaseException as error:
        import traceback

        what, problem = "traceback", "".join(traceback.format_exception(error)[-6:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if what in FINDINGS and keep is not None:
        (keep / f"{number}{original.suffix}").write_bytes(data)
    return {"kind": kind, "file": original.name, "what": what, "problem": problem}


FINDINGS = ("wrong", "traceback", "hang", "limit", "crash", "lost", "left")


def loads(campaign: Campaign) -> None:
    """Mutated files, many to a fork."""
    number = 0
    while campaign.goes_on("loads", number):
        wanted = range(number, min(number + BATCH, campaign.most["loads"]))
        folder = Path(tempfile.mkdtemp(dir=campaign.shop.folder))

        def batch(wanted=wanted, folder=folder) -> int:
            def stop(*rest: Any) -> None:
                raise Hang

            signal.signal(signal.SIGPROF, stop)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for case in wanted:
                found = one_load(case, campaign.seed, campaign.kinds, campaign.shop, folder, campaign.keep)
                found["memory"] = str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
                sys.__stdout__.write(f"\x1e{json.dumps(found)}\n")
                sys.__stdout__.flush()
            return 0

        done = forked(batch, AS=address_space() + MEMORY)
        found = [json.loads(line[1:]) for line in done.text.split("\n") if line.startswith("\x1e")]
        for case, facts in zip(wanted, found, strict=False):
            campaign.note("loads", facts["what"], f"{case} {facts['kind']} {facts['file']}: {facts['problem']}")
            campaign.memory = max(campaign.memory, int(facts["memory"]))
        number += len(found)
        if len(found) < len(wanted):
            campaign.note(
                "loads", "hang" if done.hung else "crash", f"{number}: status {done.status} {done.text[-2000:]}"
            )
            number += 1
        shutil.rmtree(folder)


# kills and full disks


def digests(folder: Path) -> dict[str, str]:
    """Name to digest of what commands leave, but for logs and locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("log.jsonl", "environment.json") and path.suffix != ".lock"
    }


@dataclass
class Writer:
    """A writing command: its arguments, what it leaves, what was there before, and how long it takes."""

    name: str
    argv: str
    shop: Workshop
    whole: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    seconds: float = 0

    def run(self, out: Path, **options: Any) -> Outcome:
        """Into a folder."""
        arguments = self.shop.arguments(self.argv, out)
        return forked(lambda: command(*arguments), **options)

    def prepare(self, out: Path) -> None:
        """What is there before it begins."""
        out.mkdir(exist_ok=True)
        if self.name == "overwrite":
            shutil.copytree(self.shop.folder / "model", out / "export")
            (out / "export" / "plnd.json").write_text("{}")

    def measure(self, out: Path) -> None:
        """Runs it once, undisturbed."""
        self.prepare(out)
        self.before = digests(out)
        done = self.run(out)
        if done.status:
            raise SystemExit(f"plnd {self.argv}: status {done.status}\n{done.text}")
        self.whole, self.seconds = digests(out), done.seconds

    def problem(self, out: Path, ended: bool) -> str:
        """What in a folder is neither whole, nor what was there, nor what says that it is not at its end."""
        found = digests(out)
        if ended:
            return "" if found == self.whole else f"other files: {sorted(set(found.items()) ^ set(self.whole.items()))}"
        shown = {name: digest for name, digest in found.items() if ".partial" not in name}
        if self.name == "overwrite" and shown not in (self.before, self.whole):
            return "neither the earlier folder nor the new one"
        for name, digest in shown.items():
            if not name.endswith(GROWS) and digest not in (self.whole.get(name), self.before.get(name)):
                if name in self.whole or self.name not in ("arena",):
                    return f"{name} is not whole"
        return ""


def kills(campaign: Campaign) -> None:
    """Ends commands at random moments, then runs them to their end."""
    writers = campaign.writers()
    number = 0
    while campaign.goes_on("kills", number):
        chance = random.Random(f"{campaign.seed}:kill:{number}")
        writer = writers[number % len(writers)]
        with campaign.folder() as out:
            writer.prepare(out)
            signals = chance.choice(((9,), (9,), (15,), (2,), (2, 2)))
            done = writer.run(out, kill=signals, after=chance.uniform(0.02, writer.seconds))
            where = f"{number} {writer.name} signals {signals} after {done.seconds:.2f} s: status {done.status}"
            campaign.judge("kills", done, where, (0, 130, *(-signal for signal in signals)))
            if problem := writer.problem(out, ended=done.status == 0):
                campaign.note("kills", "lost", f"{where}: {problem}")
            again = writer.run(out)
            campaign.judge("kills", again, f"{where}, then", (0,))
            if again.status == 0 and (problem := writer.problem(out, ended=True)):
                campaign.note("kills", "lost", f"{where}, then {problem}")
        campaign.note("kills", "killed" if done.status else "was faster")
        number += 1


def disks(campaign: Campaign) -> None:
    """Fills the disk, or the largest file that there may be, at a random byte."""
    writers = campaign.writers()
    number = 0
    while campaign.goes_on("disks", number):
        chance = random.Random(f"{campaign.seed}:disk:{number}")
        writer = writers[number % len(writers)]
        with campaign.folder() as out:
            writer.prepare(out)
            sizes = [
                path.stat().st_size
                for path in (campaign.shop.folder / "reference" / writer.name).rglob("*")
                if path.is_file()
            ]
            pages = chance.randrange(1, 2 + sum(sizes) // 4096)
            mounted = not writer.before and mount(out, pages * 4)
            limits = {} if mounted else {"FSIZE": chance.randrange(max(sizes))}
            try:
                done = writer.run(out, **limits)
                where = f"{number} {writer.name} {limits or f'{pages * 4} KiB'}: status {done.status}"
                campaign.judge("disks", done, where, (0, 2))
                if problem := writer.problem(out, ended=done.status == 0):
                    campaign.note("disks", "lost", f"{where}: {problem}")
                if partial := [name for name in digests(out) if ".partial" in name]:
                    campaign.note("disks", "left", f"{where}: {partial}")
            finally:
                if mounted:
                    subprocess.run(["umount", out], check=True)
        campaign.note("disks", "refused" if done.status else "fitted")
        number += 1


def mount(folder: Path, kilobytes: int) -> bool:
    """A small disk at a folder, where this process may have one."""
    with suppress(OSError):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True
        )
        return done.returncode == 0
    return False


# threads


def threads(campaign: Campaign) -> None:
    """Files written and read, and one model used, by several threads."""
    number = 0
    while campaign.goes_on("threads", number):
        with campaign.folder() as out:
            action = (
                (lambda out=out: files_in_threads(out))
                if number % 2 == 0
                else lambda: model_in_threads(campaign.shop.folder)
            )
            done = forked(action, limit=300)
            campaign.judge("threads", done, f"{number}: status {done.status}", (0,))
        campaign.note("threads", "done")
        number += 1


def in_threads(*actions: Callable[[], None]) -> int:
    """Runs actions side by side; the status is 1, and their errors are shown, if one raised."""
    failed: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    started = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for error in failed:
        print(f"Traceback: {type(error).__name__}: {error}")
    return int(bool(failed))


def files_in_threads(out: Path) -> int:
    """Two artifacts take turns at one path; whoever reads finds one of them."""
    from plnd.any_artifact import load

    sets = [make_neurons({"0.up_proj": list(range(n, 8))}, language=f"{n}") for n in range(2)]
    path = out / "set"
    sets[0].save(path)
    expected = []
    for one in sets:
        one.save(out / "other")
        expected.append(content(load(out / "other")))
    end = time.monotonic() + 2

    def write(number: int) -> None:
        while time.monotonic() < end:
            sets[number].save(path)

    def read() -> None:
        while time.monotonic() < end:
            assert content(load(path)) in expected, "a mixture"

    return in_threads(lambda: write(0), lambda: write(1), read, read)


def model_in_threads(w: Path) -> int:
    """Detections and deactivations of one model: each right or refused, and the model afterwards as it was."""
    import torch

    import plnd

    model = plnd.load_model(str(w / "model"), dtype="float32", device="cpu")
    neurons = plnd.NeuronSet.load(w / "made/select/zh.neurons")
    documents = [list(range(3 + n, 40 + n)) for n in range(4)]
    config = plnd.DetectConfig(language="zh", min_length=8, max_length=32)
    ids = torch.tensor([documents[0]])

    def digest() -> str:
        state = [value.numpy().tobytes() for value in model.state_dict().values()]
        return hashlib.sha256(b"".join(state) + str(model.config._attn_implementation).encode()).hexdigest()

    expected, before = content(plnd.detect(model, documents, config)), digest()
    with torch.no_grad(), plnd.deactivated(model, neurons):
        masked = model(ids).logits

    def detect() -> None:
        with suppress(plnd.PLNDError):
            assert content(plnd.detect(model, documents, config)) == expected, "other scores"

    def deactivate() -> None:
        for _ in range(5):
            with suppress(plnd.PLNDError), torch.no_grad(), plnd.deactivated(model, neurons):
                assert torch.equal(model(ids).logits, masked), "other logits"

    return in_threads(detect, detect, deactivate) or int(digest() != before)


# the campaign


@dataclass
class Campaign:
    """What is to be done until when, and what was found."""

    shop: Workshop
    seed: int
    kinds: Sequence[str]
    most: dict[str, int]
    names: Sequence[str]
    keep: Path | None
    ends: dict[str, float] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    memory: int = 0
    _writers: list[Writer] = field(default_factory=list)

    def goes_on(self, part: str, number: int) -> bool:
        """Whether there is time for more, and more is wanted."""
        return number < self.most[part] and time.monotonic() < self.ends[part]

    def note(self, part: str, what: str, where: str = "") -> None:
        """Counts; a finding is told at once."""
        self.counts.setdefault(part, Counter())[what] += 1
        if what in FINDINGS:
            print(f"{part}: {what}: {where}", flush=True)

    def judge(self, part: str, done: Outcome, where: str, expected: Sequence[int]) -> None:
        """A process must end with an expected status, and without a traceback."""
        if done.hung:
            self.note(part, "hang", where)
        elif "Traceback" in done.text or done.status not in expected:
            self.note(part, "traceback", f"{where}: {done.text[-3000:]}")

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new one, gone afterwards."""
        path = Path(tempfile.mkdtemp(dir=self.shop.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def writers(self) -> list[Writer]:
        """The writing commands, each run once."""
        for name in () if self._writers else self.names:
            self._writers.append(Writer(name, WRITERS[name], self.shop))
            out = self.shop.folder / "reference" / name
            out.parent.mkdir(exist_ok=True)
            self._writers[-1].measure(out)
        return self._writers


def main() -> None:
    """Runs the campaign and prints its counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for all parts (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", nargs="+", help="of files to mutate (default: all)")
    parser.add_argument("--commands", nargs="+", choices=WRITERS, help="to kill (default: all)")
    parser.add_argument("--loads", type=int, default=10**9, help="at most so many")
    parser.add_argument("--kills", type=int, default=10**9)
    parser.add_argument("--disks", type=int, default=10**9)
    parser.add_argument("--threads", type=int, default=10**9)
    parser.add_argument("--keep", type=Path, help="folder for the files that something was found with")
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        shop.make_artifacts()
        by_hand = set(args.kinds or ["all"]) <= shop.kinds.keys() and args.parts == ["loads"]
        everything = not by_hand and (
            bool({"loads", "threads"} & set(args.parts)) or not set(args.commands or WRITERS) <= LIGHT
        )
        import_libraries(everything)
        if not by_hand:
            shop.make_runs(everything)
        most = {part: getattr(args, part) for part in PARTS}
        names = args.commands or list(WRITERS)
        campaign = Campaign(shop, args.seed, args.kinds or sorted(shop.kinds), most, names, args.keep)
        if not by_hand and {"kills", "disks"} & set(args.parts):
            campaign.writers()
        share = sum(SHARE[part] for part in args.parts)
        for part in args.parts:
            campaign.ends[part] = time.monotonic() + 60 * args.minutes * SHARE[part] / share
            globals()[part](campaign)
            counts = campaign.counts.get(part, Counter())
            print(
                f"{part}: {sum(counts.values()):,} ({', '.join(f'{n:,} {x}' for x, n in sorted(counts.items()))})",
                flush=True,
            )
    print(f"memory: at most {campaign.memory} MiB beyond the libraries'")
    found = sum(counts[what] for counts in campaign.counts.values() for what in FINDINGS)
    sys.exit(1 if found else 0)


def import_libraries(all_of_them: bool) -> None:
    """What is imported once, before the forks; nothing is computed here, which would start threads."""
    import lm_eval_plnd.experiments.settings
    import plnd.any_artifact
    import plnd.commands.main
    import plnd.io.corpus_files  # noqa: F401

    if all_of_them:
        import lm_eval.evaluator  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import lm_eval_plnd.experiments.run
        import lm_eval_plnd.model  # noqa: F401
        import plnd.detection.run  # noqa: F401


if __name__ == "__main__":
    main()
