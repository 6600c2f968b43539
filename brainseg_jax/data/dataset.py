"""From the config to volumes that are ready: the manifest or the sample cohort, its split, and the standardised cache."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from brainseg_jax.data import cache, sample
from brainseg_jax.data.manifest import Row, apply_splits, assign_splits, read_manifest, write_splits
from brainseg_jax.data.standardize import Spec, spec
from brainseg_jax.errors import InputError
from brainseg_jax.runtime import cache_folder


class Dataset(NamedTuple):
    """Volumes by split, and the hashes that say which they are."""

    train: tuple[cache.Entry, ...]
    val: tuple[cache.Entry, ...]
    spec: Spec
    failures: tuple[cache.Failure, ...]
    manifest: str
    manifest_sha256: str
    split_sha256: str

    @property
    def volumes_sha256(self) -> str:
        """Which volumes are trained on and which are held out, in their order: what the stream of batches depends on."""
        names = [(side, *entry.row.key) for side, entries in (("train", self.train), ("val", self.val)) for entry in entries]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    def subjects(self) -> list[str]:
        """A hash per training person, for a checkpoint to say whether somebody was trained on."""
        return sorted({hashlib.sha256("/".join(entry.row.person).encode()).hexdigest()[:16] for entry in self.train})


def prepare(
    data: ConfigDict, labels: bool, run: Path, say: Callable[[str], None], progress: Callable[[str], Callable[[int, int], None]]
) -> Dataset:
    """Everything that has to be on disk before the first batch; what is there already is not made again.

    Without `labels` those in the manifest are not read: a damaged one is no reason to leave its scan out of pretraining. Writes split.tsv
    and, where scans were set aside, failures.csv into the folder `run`. `progress(what)` gives a callback (done, total).
    """
    folder = Path(data.cache).expanduser() if data.cache else cache_folder()
    if data.manifest:
        manifest = Path(data.manifest).expanduser()
    else:
        say(f"\n!!! {sample.NOTICE}\n")
        place = folder / "sample" / f"{data.subjects}_{data.split_seed}"
        manifest = sample.make_cohort(place, data.subjects, data.split_seed, progress=progress("making the sample cohort"))
    rows = split(read_manifest(manifest), data)
    split_sha256 = write_splits(run / "split.tsv", rows)
    wanted = [row for row in rows if row.split in ("train", "val")]
    wanted = wanted if labels else [row._replace(labels=(), scheme=()) for row in wanted]
    chosen = spec(data.spec, data.spacing, data.size, data.dtype)
    entries, failures = cache.build(
        wanted, chosen, folder / cache.VOLUMES, max_failures=data.max_failures, progress=progress("standardising scans")
    )
    if failures:
        cache.write_failures(run / "failures.csv", failures)
        cache.judge(failures, len(wanted), data.max_failures, run / "failures.csv")
        say(f"{len(failures)} of {len(wanted)} scans set aside, reasons in {run / 'failures.csv'}; the first: {failures[0].reason}")
    train, val = (tuple(entry for entry in entries if entry.row.split == side) for side in ("train", "val"))
    for side, ready in (("train", train), ("val", val)):
        if not ready:
            raise InputError(f"{manifest}: no usable scan in split {side}; add some, or change data.fractions {tuple(data.fractions)}")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return Dataset(train, val, chosen, failures, str(manifest), digest, split_sha256)


def split(rows: tuple[Row, ...], data: ConfigDict) -> tuple[Row, ...]:
    """The rows with a split each: from a split file, as the manifest has it, or made by the config's rule."""
    if data.splits:
        return apply_splits(rows, Path(data.splits).expanduser())
    return assign_splits(rows, seed=data.split_seed, fractions=None if data.split_rule == "paper" else data.fractions, rule=data.split_rule)
