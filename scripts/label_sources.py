"""How the labels of two manifests differ: what share of the brain each structure is, person by person, before a network learns from both.

    python scripts/label_sources.py one.tsv other.tsv --labels intracranial --out docs/label_sources

The first label map of each person is regrouped into the table `--labels` by its own scheme. Volumes are divided by that of all structures
but the CSF around the brain, which tools cut differently. OUT.md has means, their ratio, and the difference in standard deviations of
people: what one tool calls otherwise stands out from how people differ. What people wrote below the table, it keeps.
"""

import argparse
import sys
from itertools import dropwhile
from pathlib import Path

import numpy as np
from reports import publish

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.core.errors import InputError, exit_code
from brainseg_jax.core.files import read_text
from brainseg_jax.data.labels import Table, lookup, missing, read_table
from brainseg_jax.data.manifest import read_manifest
from brainseg_jax.data.nifti import read_labels

CSF = 24  # FreeSurfer's id of what is around the brain


def main() -> int:
    """Writes the report. Returns the exit code."""
    parser = Parser("python scripts/label_sources.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs=2)
    parser.add_argument("--labels", default="intracranial", help="the table in which both are compared (%(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    return exit_code(lambda: publish((args := parser.parse_args()).out, lambda: report(args)))


def report(args: argparse.Namespace) -> str:
    """The table. Raises InputError for labels that cannot be read or regrouped, and for fewer than two people."""
    table = read_table(args.labels)
    one, other = (shares(path, table) for path in args.manifest)
    names = [path.stem for path in args.manifest]
    lines = [
        "# What two sources of labels call the same\n",
        f"Shares of the brain (all structures of {table.name} but the CSF around it), in thousandths: mean ± standard deviation over "
        f"{len(one)} people of {names[0]} and {len(other)} of {names[1]}; the CSF as a share of the same brain. A structure that a source "
        "does not have is a dash.\n",
        f"| structure | {names[0]} | {names[1]} | ratio | difference, standard deviations |",
        "|---|---|---|---|---|",
    ]
    for n, structure in enumerate(table.structures):
        a, b = 1000 * one[:, n], 1000 * other[:, n]
        cells = [f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" if x.any() else "–" for x in (a, b)]
        both = a.any() and b.any()
        apart = (b.mean() - a.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2) if both else np.nan
        lines.append(
            f"| {structure.name} | {' | '.join(cells)} | " + (f"{b.mean() / a.mean():.2f} | {apart:+.1f} |" if both else "– | – |")
        )
    return "\n".join([*lines, ""]) + below_table(args.out.with_suffix(".md"))


def below_table(file: Path) -> str:
    """What stands below the table of an earlier report: what people wrote about it. Raises InputError for what is no text."""
    try:
        lines = read_text(file).splitlines(keepends=True) if file.exists() else []
    except UnicodeDecodeError:
        raise InputError(f"{file}: is no text; give another name, or remove it") from None
    is_table = lambda line: line.startswith("|")  # noqa: E731
    return "".join(dropwhile(is_table, dropwhile(lambda line: not is_table(line), lines)))


def shares(path: Path, table: Table) -> np.ndarray:
    """[people, structures]: each structure's volume by the brain's. A person's further rows are left out.

    Raises InputError for labels without a scheme or a brain, and for fewer than two people.
    """
    rows = {row.person: row for row in reversed(read_manifest(path)) if row.labels}
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} people have labels; give two or more, whose spread can be told")
    for row in rows.values():
        if not row.scheme:
            raise InputError(f"{row.labels[0]}: the manifest does not say which label table it follows; fill in the column scheme")
    lacking = {s.name for row in rows.values() for s in missing(read_table(row.scheme[0]), table)}
    found = []
    for row in rows.values():
        labels, source = read_labels(row.labels[0]).voxels, read_table(row.scheme[0])
        counts = np.bincount(lookup(labels, source, table, str(row.labels[0])).ravel(), minlength=len(table.structures) + 1)[1:]
        brain = sum(c for c, s in zip(counts, table.structures, strict=True) if CSF not in s.freesurfer)
        if not brain:
            raise InputError(f"{row.labels[0]}: has no structure of {table.name}; leave it out of the manifest")
        found.append([0 if s.name in lacking else c / brain for c, s in zip(counts, table.structures, strict=True)])
    return np.array(found)


if __name__ == "__main__":
    sys.exit(main())
