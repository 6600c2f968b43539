"""The long run that shows that the software holds: kills, damage, full disks, hostile files, two at once, and guards taken away.

    python scripts/endurance.py                             two hours on two cores; the same command goes on where it stopped
    python scripts/endurance.py --short                     a few trials of each kind, within a minute: what the tests run
    python scripts/endurance.py --only damage --minutes 10  the kinds whose names begin so
    python scripts/endurance.py --only "damage to checkpoints" --trial 17   one trial again, its files left in OUT/again
    python scripts/endurance.py --report                    writes docs/reliability.md of what was found

Every trial follows from --seed, its kind and its number, and ends as one of the words that the report explains. Results are a line each
in OUT/trials.jsonl. Exit code 1 if any trial ended badly. For Linux; a full disk needs root, and is left out without it. What is tried
stands in scripts/trials/, a file for each subject.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported

from trials import report, series

from brainseg_jax.core.errors import exit_code


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would what it starts
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120, help="no trial is begun after so many (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--only", default="", metavar="KIND", help="kinds whose names begin so")
    parser.add_argument("--out", type=Path, default=Path("runs/endurance"), help="the folder of results (%(default)s)")
    parser.add_argument("--short", action="store_true", help="a few trials of each kind")
    parser.add_argument("--trial", type=int, metavar="N", help="does the N-th trial of the kind --only again, and keeps its files")
    parser.add_argument("--report", type=Path, nargs="?", const=Path("docs/reliability.md"), metavar="PAGE", help="writes the page only")
    parser.add_argument("--lane", choices=series.LANES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.absolute()
    if args.report:
        return exit_code(lambda: report.write(args.out / series.FILE, args.seed, args.report))
    if args.trial is not None:
        return exit_code(lambda: series.repeat(args))
    return exit_code(lambda: series.lane(args) if args.lane else series.series(args))


if __name__ == "__main__":
    sys.exit(main())
