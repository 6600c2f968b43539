"""The data set of a config: the manifest or the sample cohort, its split, and the cache of standardised volumes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError, first_few, warnings
from brainseg_jax.core.files import write_text
from brainseg_jax.core.runtime import cache_folder
from brainseg_jax.data import cache, sample
from brainseg_jax.data.labels import HEAD, Table, grouping, missing, read_table
from brainseg_jax.data.leakage import check_leakage
from brainseg_jax.data.manifest import Row, apply_splits, assign_splits, read_manifest, split_table
from brainseg_jax.data.preprocess import Spec, spec

SPLIT, FAILURES = "split.tsv", "failures.csv"  # in a run folder: the split, and the scans set aside, with reasons


class Dataset(NamedTuple):
    """The volumes for training and validation, with hashes. `split` is the text of split.tsv, which includes the test set."""

    train: tuple[cache.Entry, ...]
    val: tuple[cache.Entry, ...]
    spec: Spec
    failures: tuple[cache.Failure, ...]
    manifest: str
    manifest_sha256: str
    split: str
    target: Table | None = None

    @property
    def volumes_sha256(self) -> str:
        """A hash of the training and validation volumes in their order, which determines the stream of batches."""
        names = [
            (side, *entry.row.key, *(image.name for image in entry.row.also))
            for side, entries in (("train", self.train), ("val", self.val))
            for entry in entries
        ]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    @property
    def split_sha256(self) -> str:
        return hashlib.sha256(self.split.encode()).hexdigest()

    def contents(self) -> dict[str, dict[Path, str]]:
        """The SHA-256 hashes of the files of each scan's images and labels, by the scan's name, which does not depend on its path."""
        return {"/".join(entry.row.key): cache.contents(entry) for entry in (*self.train, *self.val)}

    def subjects(self) -> list[str]:
        """A hash for each training subject, by which a checkpoint records whom it was trained on."""
        return sorted({entry.row.hashed for entry in self.train})


def prepare(
    data: ConfigDict,
    target: Table | None,
    say: Callable[[str], None],
    progress: Callable[[str], Callable[[int, int], None]],
    channels: int = 1,
    report: Path | None = None,
    heads: Table | None = None,
    use: Callable[[Row], bool] = lambda row: True,
) -> Dataset:
    """The data set, with everything on disk that the first batch needs; cached files are reused.

    With a `target` only scans with labels are used (see `labelled`), their labels as its classes. Without one labels are not read, so that
    damaged labels do not exclude a scan from pretraining. `use` selects rows; `progress(what)` returns a callback (done, total). Raises
    InputError if the manifest does not have `channels` images a subject, or if too many scans are unusable; the file `report`, if given,
    then lists them.
    """
    folder = Path(data.cache).expanduser() if data.cache else cache_folder()
    if target:
        check_learned(target)
    if data.manifest:
        manifest = Path(data.manifest).expanduser()
    else:
        say(f"\n!!! {sample.NOTICE}\n")
        cohort = folder / "sample" / f"{data.subjects}_{data.split_seed}"
        manifest = sample.make_cohort(cohort, data.subjects, data.split_seed, progress=progress("making the sample cohort"))
    rows = split(read_manifest(manifest), data)
    if (images := len(rows[0].images)) != channels:
        raise InputError(
            f"{manifest}: its column image names {images} image{'s' * (images > 1)} a subject, and the config has channels {channels}; use "
            f"--config.channels={images}, or give each subject {channels}, separated by ';'"
        )
    for line in warnings(check_leakage(rows, manifest)):
        say(line)
    sides = split_table(rows, manifest)
    wanted = [row for row in rows if row.split in ("train", "val") and use(row)]
    check_made(wanted, target, heads, data.missing_labels, manifest)
    wanted = labelled(wanted, data, target, str(manifest), heads) if target else [row._replace(labels=(), scheme=()) for row in wanted]
    check_sides({row.split for row in wanted}, target, data, manifest)
    standard = spec(data.spec, data.spacing, data.size, data.dtype)
    options = {"target": target, "heads": heads, "max_failures": data.max_failures, "progress": progress("standardising scans")}
    entries, failures = cache.build(wanted, standard, folder / cache.VOLUMES, **options)
    if failures:
        if report and len(failures) > data.max_failures * len(wanted):
            cache.write_failures(report, failures)
        check_failures(len(wanted), entries, failures, data.max_failures, report, manifest)
        say(f"{len(failures)} of {len(wanted)} scans set aside; the first: {failures[0].reason}")
    check_sides({entry.row.split for entry in entries}, target, data, manifest)
    for line in warnings(cache.remarks(entries, manifest)):
        say(line)
    train, val = (tuple(entry for entry in entries if entry.row.split == side) for side in ("train", "val"))
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return Dataset(train, val, standard, failures, str(manifest), digest, sides, target)


def write_down(data: Dataset, run: Path, begun: bool) -> None:
    """Writes split.tsv and, if scans were set aside, failures.csv into a run's folder.

    Once training has `begun`, split.tsv is kept: subjects added later to the test set do not change it.
    """
    if not (begun and (run / SPLIT).exists()):
        write_text(run / SPLIT, data.split)
    (run / FAILURES).unlink(missing_ok=True)  # of an earlier try
    if data.failures:
        cache.write_failures(run / FAILURES, data.failures)


def repair_split(data: Dataset, run: Path, recorded: str, say: Callable[[str], None]) -> None:
    """Rewrites a run's split.tsv, with a message, if it does not have the recorded hash.

    Raises InputError if the split of the current data differs from the recorded one.
    """
    file = run / SPLIT
    if not recorded or (file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == recorded):
        return
    if data.split_sha256 != recorded:
        raise InputError(
            f"{file}: is damaged, changed or missing; bring it back from a backup, or bring back the manifest that the run began with"
        )
    write_text(file, data.split)
    say(f"{file}: was damaged, changed or missing, and is written anew")


def labelled(rows: Sequence[Row], data: ConfigDict, target: Table, manifest: str, heads: Table | None = None) -> list[Row]:
    """The training and validation scans of fine-tuning, each with the one label map to read (the paper, section IV-C).

    `data.num_labelled` training scans of the data set `data.target` (all data sets if empty) are drawn: the first by hashed names, so that
    the draw of ten is part of the draw of twenty. Rows with labels only are not counted; all are used except those of subjects whose scans
    are left out. Other data sets are sources: all their training scans are used, and none of their validation scans. Raises InputError for
    an unknown target, for more labelled scans than there are, and for labels that do not distinguish the target's structures.
    """
    names = sorted({row.dataset for row in rows})
    if data.target and data.target not in names:
        raise InputError(f"{manifest}: has no data set {data.target!r} in train or val; data.target may be one of {', '.join(names)}")
    rows = [
        read_for(row, target, data.missing_labels, heads if row.labels_only or row.split == "train" else None) for row in rows if row.labels
    ]
    of_target = {row for row in rows if row.dataset == data.target or not data.target}
    train = [row for row in of_target if row.split == "train" and not row.labels_only]
    if data.num_labelled > len(train):
        remedy = "use at most as many" if train else "add some"
        raise InputError(f"{manifest}: data.num_labelled is {data.num_labelled}, and {len(train)} training scans have labels; {remedy}")

    def order(row: Row) -> bytes:
        return hashlib.sha256("\t".join((str(data.split_seed), *row.key)).encode()).digest()

    left_out = set(sorted(train, key=order)[data.num_labelled :]) if data.num_labelled >= 0 else set()
    unseen = {row.person for row in left_out} - {row.person for row in train if row not in left_out}
    left_out |= {row for row in rows if row.labels_only and row.person in unseen}
    if data.num_labelled == 0 and not any(row.split == "train" and row not in left_out for row in rows):
        raise InputError(f"{manifest}: data.num_labelled is 0, and no other data set has masks to train on; use more, or -1 for all")
    return [row for row in rows if row not in left_out and (row.split == "train" or row in of_target)]


def read_for(row: Row, target: Table, lacking: str, heads: Table | None = None) -> Row:
    """The row with its first label map that has all structures of the target or, if `lacking` is "background", the most of them.

    With `heads` the label map has to distinguish the structures of `heads`, too.
    """
    if not row.scheme:
        raise InputError(f"{row.labels[0]}: the manifest does not say which label table it follows; fill in the column scheme")
    absent, faults = {}, []
    for scheme in row.scheme:
        try:
            absent[scheme] = missing(read_table(scheme), target)
        except InputError as fault:
            faults.append(fault)
    if not absent:
        raise faults[0]
    for scheme in row.scheme if heads else ():
        try:
            grouping(read_table(scheme), heads)
        except InputError as fault:
            faults.append(fault)
            absent.pop(scheme, None)
    if not absent:
        reason, other = str(faults[-1]).partition(";")[0], "" if row.labels_only else ", or use synth.share=0"
        raise InputError(f"{row.labels[0]}: no scan can be made of it, {reason}; give finer labels, leave it out{other}")
    best = min(absent, key=lambda scheme: len(absent[scheme]))
    labels = row.labels[row.scheme.index(best)]
    if lacking == "refuse" and len(absent[best]) == len(target.structures):
        raise InputError(f"{labels}: labels of {best} have nothing of {target.name}; give labels that have, or use another table")
    if lacking == "refuse" and absent[best]:
        names = first_few((structure.name for structure in absent[best]), 4)
        raise InputError(
            f"{labels}: labels of {best} have no {names}, which {target.name} has; use a table without, or "
            "--config.data.missing_labels=background to take them as background"
        )
    return row._replace(labels=(labels,), scheme=(best,))


def check_learned(target: Table) -> None:
    """Raises InputError for the table of synthesis as a target: its classes outside the brain are intensity clusters."""
    if target.name == HEAD:
        raise InputError(f"label table {HEAD} is what scans are made from, by brightness too, and not to be learned; use another one")


def check_made(rows: Sequence[Row], target: Table | None, heads: Table | None, lacking: str, manifest: Path) -> None:
    """Raises InputError for rows with labels only if no scans are synthesised (`heads` is None), and for a target with structures that
    `heads` does not have."""
    if (unused := [row for row in rows if row.labels_only]) and not heads:
        raise InputError(
            f"{manifest}: {unused[0].image} has no image; add one, leave the line out, or have scans made of it, which fine-tuning does "
            "with --config.synth.share=1"
        )
    if target and heads and (absent := missing(heads, target)) and lacking == "refuse":
        raise InputError(
            f"scans that are made have no {first_few((structure.name for structure in absent), 4)}, which {target.name} has; use a coarser "
            "data.labels, synth.share=0, or --config.data.missing_labels=background"
        )


def check_sides(sides: set[str], target: Table | None, data: ConfigDict, manifest: Path) -> None:
    """Raises InputError if train or val is not among `sides`, the splits of usable scans."""
    for side in ("train", "val"):
        if side not in sides:
            what = "usable scan with labels" if target else "usable scan"
            where = "data.splits" if data.splits else f"its column split or, where that is empty, data.fractions {tuple(data.fractions)}"
            raise InputError(f"{manifest}: no {what} in split {side}; add some, or change {where}")


def check_failures(
    wanted: int, ready: Sequence[cache.Entry], failures: Sequence[cache.Failure], most: float, report: Path | None, manifest: Path
) -> None:
    """Raises InputError, with the first failures and the remedies, if more than the share `most` of the `wanted` scans failed. `report`:
    the file that lists all failures, if any."""
    if len(failures) <= most * wanted:
        return
    untried = wanted - len(ready) - len(failures)
    first = " | ".join(f"{failure.row.subject}: {failure.reason}" for failure in failures[:3])
    remedies = ["mend them", f"leave them out of {manifest}"]
    if untried or {"train", "val"} <= {entry.row.split for entry in ready}:
        # The smallest sufficient tenth; 1 if some scans have not been tried.
        share = 1 if untried else next(n / 10 for n in range(11) if len(failures) <= n / 10 * wanted)
        remedies.append(f"go on without them: --config.data.max_failures={share:g}")
    counts = f"{len(failures)} of {wanted} scans cannot be used{f' ({untried} not tried yet)' * bool(untried)}"
    more, where = " | …" * (len(failures) > 3), f" (all in {report})" if report else ""
    bound = f"a run leaves out {100 * most:g} % at most (data.max_failures={most:g})"
    raise InputError(f"{counts}, and {bound}: {first}{more}{where}; {', or '.join(remedies)}")


def split(rows: tuple[Row, ...], data: ConfigDict) -> tuple[Row, ...]:
    """The rows with their splits: from a split file, from the manifest, or by the config's rule."""
    if data.splits:
        return apply_splits(rows, Path(data.splits).expanduser())
    return assign_splits(rows, seed=data.split_seed, fractions=None if data.split_rule == "paper" else data.fractions, rule=data.split_rule)
