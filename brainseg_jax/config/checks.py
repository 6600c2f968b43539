"""Validation of configs: each key by its own rule, then combinations of keys. Encoders check their own keys (models/*_spec.py)."""

import math

from ml_collections import ConfigDict

from brainseg_jax.config.keys import KEYS, get_key
from brainseg_jax.core.errors import InputError
from brainseg_jax.models.encoders import ENCODERS


def check(c: ConfigDict) -> None:
    """Raises InputError, naming the key and its allowed values, for an unusable value."""
    for name, key in KEYS.items():
        if fault := key.rule.fault(get_key(c, name), key.default):
            raise InputError(f"{name} {fault}")
    names = tuple(c.data.channel_names)
    if names and not (all(isinstance(name, str) for name in names) and len(set(names)) == len(names) == c.channels):
        raise InputError(f"data.channel_names is {names}; give a name for each of channels {c.channels}, or none")
    if c.optim.warmup == 1:
        raise InputError("optim.warmup is 1, which leaves nothing to cool down; use a share below 1")
    if (c.steps > 0) == (c.epochs > 0):
        raise InputError(f"steps is {c.steps} and epochs is {c.epochs}; set one of them, and the other to 0")
    if any(n > size for n, size in zip(c.data.crop, c.data.size, strict=True)):
        raise InputError(f"data.crop {c.data.crop} is larger than data.size {c.data.size}; make the crop smaller or the size larger")
    for parts in ("data.crops_per_volume", "optim.accumulate"):
        if c.data.batch % get_key(c, parts):
            raise InputError(f"data.batch {c.data.batch} does not divide by {parts} {get_key(c, parts)}; change one of the two")
    elastic = c.augment.elastic
    if elastic.mm > (most := 0.4 / sum(0.5**i for i in range(elastic.octaves))) * elastic.nodes:
        times = f" with {elastic.octaves} octaves" if elastic.octaves > 1 else ""
        raise InputError(
            f"augment.elastic.mm {elastic.mm}{times} would fold heads; use at most {most:.2g} × augment.elastic.nodes {elastic.nodes}"
        )
    if c.augment.low_resolution.chance and c.augment.low_resolution.mm <= c.data.spacing:
        raise InputError(
            f"augment.low_resolution.mm {c.augment.low_resolution.mm} is not above data.spacing {c.data.spacing}; use more, or chance=0"
        )
    if c.best.endswith(("accuracy", "top1")) or c.best.startswith("dice"):
        raise InputError(f"best is {c.best!r}, and the smallest is kept; use a loss, e.g. loss")
    made_for = {spec.pretraining: name for name, spec in ENCODERS.items() if spec.pretraining}
    if c.encoder != made_for.get(c.objective, c.encoder):
        raise InputError(f"encoder is {c.encoder}; objective {c.objective} is made for encoder {made_for[c.objective]}")
    ENCODERS[c.encoder].check(c)
    {"mae": _check_mae, "ssl": _check_ssl, "segmentation": _check_segmentation}[c.objective](c)


def check_idle(c: ConfigDict) -> None:
    """Raises InputError, naming the reason, for a changed key that has no effect in this experiment."""
    for name, why in idle_keys(c).items():
        if get_key(c, name) != KEYS[name].default:
            raise InputError(f"{name} does nothing with {why}; leave it out")


def idle_keys(c: ConfigDict) -> dict[str, str]:
    """The keys without effect in this experiment, each with the reason, the value of another key."""
    idle = {}
    for name, key in KEYS.items():
        for other, _, wanted in (condition.partition("=") for condition in key.acts_with.split()):
            if (value := get_key(c, other)) not in wanted.split(","):
                idle[name] = f"{other}={value}"
    return idle


def _check_mae(c: ConfigDict) -> None:
    """Checks of masked autoencoding."""
    if c.mae.width % c.mae.heads:
        raise InputError(f"mae.width {c.mae.width} does not divide by mae.heads {c.mae.heads}; choose another number of heads")
    tokens = math.prod(n // ENCODERS[c.encoder].multiple(c) for n in c.data.crop)
    if not 1 <= int(tokens * (1 - c.mae.mask_ratio) + 1e-6) < tokens:
        raise InputError(f"mae.mask_ratio {c.mae.mask_ratio} of {tokens} patches leaves none visible or none hidden; use e.g. 0.75")


def _check_ssl(c: ConfigDict) -> None:
    """Checks of cut-out, rotation and contrast."""
    x, y, z = c.data.crop
    multiple = ENCODERS[c.encoder].multiple(c)
    if y != z:
        raise InputError(f"data.crop {c.data.crop}: ssl turns crops in the plane of the last two axes, which must be equal: {(x, z, z)}")
    if x % multiple or y % multiple or x * y == multiple**2:
        raise InputError(f"data.crop {c.data.crop}: ssl takes multiples of {multiple}, more than one; use e.g. {(2 * multiple,) * 3}")
    if c.data.batch == 1 and c.ssl.weights[1]:
        raise InputError("data.batch 1 leaves contrast no other crop to tell apart; use 2 or more, or ssl.weights=(1.0, 0.0, 1.0)")
    if c.ssl.cutout == "share" and c.ssl.share > 0.75:
        raise InputError(f"ssl.share {c.ssl.share} takes too many boxes to draw; use at most 0.75")
    if c.optim.accumulate > 1:
        raise InputError(
            f"optim.accumulate {c.optim.accumulate} would give contrast as many small batches, with fewer negatives; use 1, and remat=True "
            "to save memory"
        )


def _check_segmentation(c: ConfigDict) -> None:
    """Checks of fine-tuning."""
    if not c.data.labels:
        raise InputError("data.labels is empty; name the label table of the task, e.g. --config.data.labels=seg4, or a TSV file")
    if c.decoder not in ENCODERS[c.encoder].decoders:
        fitting = ", or ".join(f"{encoder} with {decoder}" for encoder, spec in ENCODERS.items() for decoder in spec.decoders)
        raise InputError(f"encoder {c.encoder} and decoder {c.decoder} do not fit; use {fitting}")
    if c.synth.share and c.data.spec != "default":
        raise InputError(f"data.spec is {c.data.spec!r}, and scans that are made are scaled as by default; use synth.share=0, or default")
    if c.synth.share and c.channels > 1:
        raise InputError(
            f"synth.share is {c.synth.share} and channels is {c.channels}; scans are made of one channel, so use synth.share=0"
        )
    if c.data.num_labelled < -1:
        raise InputError(f"data.num_labelled is {c.data.num_labelled}; give a number of scans, or -1 for all")
    if not c.init.parts or set(c.init.parts) - {"encoder", "decoder", "head"} or len(set(c.init.parts)) < len(c.init.parts):
        raise InputError(f"init.parts is {tuple(c.init.parts)}; use some of encoder, decoder, head, each once")
    for name, bad in (("segmentation.overlap", 1), ("optim.unfreeze", 1), ("optim.layer_decay", 0)):
        if get_key(c, name) == bad:
            raise InputError(f"{name} is {bad}, which is just outside what it may be; use e.g. {KEYS[name].default}")
