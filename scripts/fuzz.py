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
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others claim a GiB of addresses, which counts here
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from fuzzing import parts  # noqa: E402
from fuzzing.campaign import Campaign  # noqa: E402
from fuzzing.readers import FINDINGS  # noqa: E402
from fuzzing.workshop import LIGHT, WRITERS, Workshop  # noqa: E402

PARTS = ("loads", "kills", "disks", "threads")
SHARE = {"loads": 0.55, "kills": 0.3, "disks": 0.1, "threads": 0.05}


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
            getattr(parts, part)(campaign)
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

    import pyarrow.feather
    import pyarrow.parquet  # noqa: F401

    import lm_eval_plnd.experiments.settings
    import plnd.any_artifact
    import plnd.commands.main
    import plnd.io.corpus_files  # noqa: F401

    if all_of_them:
        import lm_eval.evaluator  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import lm_eval_plnd.experiments.ablation.run
        import lm_eval_plnd.experiments.run
        import lm_eval_plnd.model  # noqa: F401
        import peft_plnd  # noqa: F401
        import plnd.detection.run  # noqa: F401


if __name__ == "__main__":
    main()
