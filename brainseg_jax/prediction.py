"""A scan's classes on its own grid, from trained networks: standardised as their checkpoints say, segmented by windows, and taken back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt

from brainseg_jax import inference, network
from brainseg_jax.data.augment import as_float
from brainseg_jax.data.labels import Table, parse_table
from brainseg_jax.data.nifti import Scan
from brainseg_jax.data.standardize import Spec, restore, spec_of, standardize
from brainseg_jax.errors import InputError


class Predictor(NamedTuple):
    """Networks that answer together (the mean of their probabilities), what they take, and what their classes are."""

    models: tuple[inference.Model, ...]
    spec: Spec
    table: Table
    overlap: float
    blend: str
    cards: tuple[dict[str, Any], ...]

    def trained_on(self) -> set[str]:
        """Hashes of the people that any of the networks, or the pretraining it began with, was trained on (`Row.hashed`)."""
        return {person for card in self.cards for person in (*card.get("subjects", ()), *card.get("subjects_before", ()))}


def predictor(checkpoints: Sequence[str | Path]) -> Predictor:
    """Reads checkpoints of fine-tuning. InputError where one does not say what its classes are, or two do not belong together."""
    models, cards, kinds = [], [], []
    for folder in checkpoints:
        loaded = network.load(folder)
        if "labels" not in loaded.card:
            raise InputError(f"{folder}: does not say what its classes are, as converted files do not; fine-tune it here, if only its head")
        models.append(loaded.model())
        cards.append(loaded.card)
        kinds.append((spec_of(loaded.card), parse_table(loaded.card["labels"], f"{folder}: its label table"), loaded.config.segmentation))
    spec, table, settings = kinds[0]
    for folder, (other_spec, other_table, _) in zip(checkpoints, kinds, strict=True):
        if other_spec != spec or other_table.structures != table.structures:
            what = "labels" if other_spec == spec else "standardisation"
            raise InputError(f"{folder}: was trained with other {what} than {checkpoints[0]}; predict with each by itself")
    return Predictor(tuple(models), spec, table, settings.overlap, settings.blend, tuple(cards))


def segment_scan(by: Predictor, scan: Scan, name: str) -> UInt[np.ndarray, "x y z"]:
    """Class numbers of the predictor's table on the scan's own grid; background where the standardised window did not reach.

    `name` is what errors call the scan. Raises InputError for a scan that cannot be standardised.
    """
    ready = standardize(scan, by.spec, name)
    volume = as_float(jnp.asarray(ready.image)[None, ..., None])[0]
    found = inference.segment(by.models, volume, overlap=by.overlap, blend=by.blend)
    return restore(found.labels, ready.record)
