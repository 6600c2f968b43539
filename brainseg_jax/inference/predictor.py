"""A predictor: an ensemble of networks with what they take, what their classes are, and how these are grouped."""

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
    """An ensemble of networks (the mean of their probabilities), what they take, and what their classes are.

    `channels`: how many images of a subject they take, `called`: what these are, in their order, where the config said so.
    `table`: the classes that come out, `own`: those of the networks, both named for their task. `groups` adds the probabilities of the
    second up to those of the first, background included; None where the two are the same. `flip`: each network also sees the flipped
    image. `keep_small_components`: they keep their label (see small_components.py).
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
        """Raises InputError, calling them `name`, for `n` images of a subject where the networks take more or fewer."""
        if n == self.channels:
            return
        taken = "one image" if self.channels == 1 else f"{self.channels} images"
        called = f" ({', '.join(self.called)}, in this order)" if self.called else ""
        ways = ("give the others with --also, or name them in the list, separated by ';'", "leave the others out")
        given = f"{n} {'is' if n == 1 else 'are'} given"
        raise InputError(f"{name}: the network was trained on {taken} a subject{called}, and {given}; {ways[n > self.channels]}")

    def trained_on(self) -> set[str]:
        """Hashes of the people that any of the networks, or the pretraining it began with, was trained on (`Row.hashed`)."""
        return {person for card in self.cards for person in (*card.get("subjects", ()), *card.get("subjects_before", ()))}

    def cohort(self) -> Cohort | None:
        """What is usual in people for the classes that come out, as the first card that knows it says; None where none does."""
        return next((card[COHORT][self.table.name] for card in self.cards if self.table.name in card.get(COHORT, ())), None)

    def asked(self, task: str, tta: bool, keep_small_components: bool) -> "Predictor":
        """The same grouped into a task, unless that is "", with left-right flips (`tta`), and with small components left as they are."""
        by = (self.grouped(task) if task else self)._replace(keep_small_components=keep_small_components)
        return by.with_flip() if tta else by

    def with_flip(self) -> "Predictor":
        """The same with every network seeing the scan twice, as it is and flipped, left and right structures changing places."""
        axis = next(axis for axis, letter in enumerate(self.spec.orientation) if letter in "LR")
        return self._replace(flip=sliding_window.Flip(axis, swap(self.own)))

    def grouped(self, task: str) -> "Predictor":
        """The same with the structures of a task ("skull", "four", "thirtythree"), or of a label table, by name or as a .tsv file.

        Of its structures those are left out that the networks' classes have no part in. Raises InputError for an unknown table, and where
        the networks do not tell apart what it does.
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
        of = [0, *(number.get(groups[s.id], 0) for s in self.own.structures)]
        return self._replace(table=Table(_task(table.name), kept), groups=np.eye(len(kept) + 1, dtype=np.float32)[of])


def predictor(checkpoints: Sequence[str | Path]) -> Predictor:
    """Reads checkpoints of fine-tuning; a name of NETWORKS is that network of the package (`network_file`).

    Raises InputError for none, for one that does not say what its classes are, and for two that do not belong together.
    """
    if not checkpoints:
        raise InputError("no checkpoint; give one, or several, an ensemble")
    checkpoints = [network_file(name) for name in checkpoints]
    models, cards, kinds = [], [], []
    for folder in checkpoints:
        loaded = network.load(folder)
        if "labels" not in loaded.card:
            raise InputError(f"{folder}: does not say what its classes are, as converted files do not; fine-tune it here, if only its head")
        models.append(loaded.model())
        cards.append(loaded.card)
        with single_file.reading(Path(folder)):
            table = parse_table(loaded.card["labels"], f"{folder}: its label table")._replace(name=_task(loaded.config.data.labels))
            kinds.append((spec_of(loaded.card), table, loaded.config))
            if len(table.structures) + 1 != loaded.config.classes:
                what = f"{len(table.structures)} structures for {loaded.config.classes - 1} classes"
                raise InputError(f"{folder}: its label table has {what}; use a checkpoint as its run wrote it")
            _check_lists(loaded.card)
    spec, table, config = kinds[0]
    images = config.channels, tuple(config.data.channel_names)
    for folder, (other_spec, other_table, other) in zip(checkpoints, kinds, strict=True):
        same = other_spec == spec, other_table.structures == table.structures, (other.channels, tuple(other.data.channel_names)) == images
        if not all(same):
            what = ("standardisation", "labels", "channels")[same.index(False)]
            raise InputError(f"{folder}: was trained with other {what} than {checkpoints[0]}; predict with each by itself")
    settings, taken = config.segmentation, {"channels": images[0], "called": images[1]}
    return Predictor(tuple(models), spec, table, table, settings.overlap, settings.blend, tuple(cards), **taken)


def _check_lists(card: dict[str, Any]) -> None:
    """Raises ValueError where people or cohorts are not as `Predictor` and `quality` take them."""
    people = (*card.get("subjects", ()), *card.get("subjects_before", ()))
    usual = [value for cohort in card.get(COHORT, {}).values() for value in cohort.values()]
    if not all(isinstance(person, str) for person in people):
        raise ValueError("subjects are no texts")
    if not all(isinstance(one, list) and [isinstance(n, int | float) for n in one] == [True] * 3 for one in usual):
        raise ValueError(f"{COHORT} has other than means, deviations and counts")


def _task(labels: str) -> str:
    """What the labels of a config are called: the task that they are of, or else the table."""
    tasks = {table: task for task, table in TASKS.items()}
    return tasks.get(labels, Path(labels).stem or "labels")
