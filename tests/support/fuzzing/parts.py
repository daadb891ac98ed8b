"""The parts of a campaign: loads, kills, full disks, threads."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing.campaign import Campaign
from fuzzing.processes import address_space, forked
from fuzzing.readers import Hang, one_load
from fuzzing.threads import files_in_threads, model_in_threads
from fuzzing.writers import digests

MEMORY = 2**29
BATCH = 50


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
                sys.__stdout__.write(f"\n\x1e{json.dumps(found)}\n")
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
