"""A predictor: an ensemble of networks with its input specification, label table, and grouping of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from brainseg_jax.config.recipes import TASKS
from brainseg_jax.core.errors import InputError, did_you_mean, first_few
from brainseg_jax.data.labels import SCHEMES, Table, grouping, parse_table, read_table, swap
from brainseg_jax.data.preprocess import Spec, spec_of
from brainseg_jax.inference import network, sliding_window
from brainseg_jax.pretrained import network_file
from brainseg_jax.qc.findings import COHORT, Cohort
from brainseg_jax.weights import single_file

Ids = Literal["freesurfer", "table", "auto"]


class Predictor(NamedTuple):
    """An ensemble of networks (the mean of their probabilities), with its input specification and label table.

    `channels`: the number of images of a subject; `called`: their names in order, if the config has them. `table`: the output classes,
    `own`: those of the networks, both named after their task. `groups` [k j] sums the probabilities of `own` to those of `table`,
    background included; None if the tables are the same. `flip`: test-time augmentation. `keep_small_components`: see small_components.py.
    """

    models: tuple[sliding_window.Model, ...]
    spec: Spec
    table: Table
    own: Table
    overlap: float
    blend: str
    cards: tuple[dict[str, Any], ...]
    groups: Float[np.ndarray, "k j"] | None = None
    flip: sliding_window.Flip | None = None
    keep_small_components: bool = False
    channels: int = 1
    called: tuple[str, ...] = ()

    def check_images(self, n: int, name: str) -> None:
        """Raises InputError, starting with `name`, if the networks do not take `n` images of a subject."""
        if n == self.channels:
            return
        expected = "one image" if self.channels == 1 else f"{self.channels} images"
        called = f" ({', '.join(self.called)}, in this order)" if self.called else ""
        more, fewer = "give the others with --also, or name them in the list, separated by ';'", "leave the others out"
        given = f"{n} {'is' if n == 1 else 'are'} given; {fewer if n > self.channels else more}"
        raise InputError(f"{name}: the network was trained on {expected} a subject{called}, and {given}")

    def trained_on(self) -> set[str]:
        """Hashes (`Row.hashed`) of the subjects that the networks were trained on, including their pretraining."""
        return {subject for card in self.cards for subject in (*card.get("subjects", ()), *card.get("subjects_before", ()))}

    def cohort(self) -> Cohort | None:
        """The cohort statistics of the output classes, from the first card that has them; None if none has."""
        return next((card[COHORT][self.table.name] for card in self.cards if self.table.name in card.get(COHORT, ())), None)

    def asked(self, task: str, tta: bool, keep_small_components: bool) -> "Predictor":
        """The predictor with these options: grouped into `task` (unless ""), with left-right flips (`tta`), keeping small components."""
        by = (self.grouped(task) if task else self)._replace(keep_small_components=keep_small_components)
        return by.with_flip() if tta else by

    def with_flip(self) -> "Predictor":
        """The predictor with left-right flips: each network also segments the flipped scan, with left and right structures exchanged."""
        axis = next(axis for axis, letter in enumerate(self.spec.orientation) if letter in "LR")
        return self._replace(flip=sliding_window.Flip(axis, swap(self.own)))

    def grouped(self, task: str) -> "Predictor":
        """The predictor grouped into the structures of a task ("skull", "four", "thirtythree") or a label table (a name or .tsv file).

        Structures without any class of the networks are left out. Raises InputError for an unknown table, and for one that separates sides
        that the networks do not.
        """
        if task not in TASKS and task not in SCHEMES and not task.endswith(".tsv"):
            known = (*TASKS, *SCHEMES)
            raise InputError(f"--task {task!r} is unknown{did_you_mean(task, known)}; use one of {', '.join(known)}, or a .tsv file")
        table = read_table(TASKS.get(task, task))
        groups = grouping(self.own, table)
        if sided := [s.name for s in self.own.structures if len(groups[s.id]) > 1]:
            raise InputError(
                f"--task {task}: the networks do not tell the sides of {first_few(sided)} apart, and it does; choose a coarser one"
            )
        kept = tuple(s for s in table.structures if (s.id,) in groups.values())
        number = {(s.id,): n for n, s in enumerate(kept, 1)}
        targets = [0, *(number.get(groups[s.id], 0) for s in self.own.structures)]
        return self._replace(table=Table(_task(table.name), kept), groups=np.eye(len(kept) + 1, dtype=np.float32)[targets])


def predictor(checkpoints: Sequence[str | Path]) -> Predictor:
    """The predictor of fine-tuned checkpoints, or of networks of the package by name (`network_file`).

    Raises InputError without a checkpoint, for one without a label table, and for two with different inputs or labels.
    """
    if not checkpoints:
        raise InputError("no checkpoint; give one, or several, an ensemble")
    checkpoints = [network_file(name) for name in checkpoints]
    ensemble, tables, kinds = [], [], []
    for folder in checkpoints:
        ensemble.append(member := network.load(folder))
        card, config = member.card, member.config
        if "labels" not in card:
            raise InputError(f"{folder}: does not say what its classes are, as converted files do not; fine-tune it here, if only its head")
        with single_file.reading(Path(folder)):
            tables.append(parse_table(card["labels"], f"{folder}: its label table")._replace(name=_task(config.data.labels)))
            structures, images = tables[-1].structures, (config.channels, tuple(config.data.channel_names))
            kinds.append({"standardisation": spec_of(card), "labels": structures, "channels": images})
            if len(structures) + 1 != config.classes:
                what = f"{len(structures)} structures for {config.classes - 1} classes"
                raise InputError(f"{folder}: its label table has {what}; use a checkpoint as its run wrote it")
            _check_lists(card)
    for folder, kind in zip(checkpoints, kinds, strict=True):
        if other := [what for what in kind if kind[what] != kinds[0][what]]:
            raise InputError(f"{folder}: was trained with other {other[0]} than {checkpoints[0]}; predict with each by itself")
    spec, _, (channels, called) = kinds[0].values()
    models, cards = zip(*((member.model(), member.card) for member in ensemble), strict=True)
    overlap, blend = ensemble[0].config.segmentation.overlap, ensemble[0].config.segmentation.blend
    return Predictor(models, spec, tables[0], tables[0], overlap, blend, cards, channels=channels, called=called)


def _check_lists(card: dict[str, Any]) -> None:
    """Raises ValueError if a card's subjects or cohorts are not as `Predictor` and `findings` expect them."""
    subjects = (*card.get("subjects", ()), *card.get("subjects_before", ()))
    statistics = [value for cohort in card.get(COHORT, {}).values() for value in cohort.values()]
    if not all(isinstance(subject, str) for subject in subjects):
        raise ValueError("subjects are no texts")
    if not all(isinstance(row, list) and [isinstance(n, int | float) for n in row] == [True] * 3 for row in statistics):
        raise ValueError(f"{COHORT} has other than means, deviations and counts")


def _task(labels: str) -> str:
    """The name of a config's labels: their task, or else their table."""
    tasks = {table: task for task, table in TASKS.items()}
    return tasks.get(labels, Path(labels).stem or "labels")
