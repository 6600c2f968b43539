"""Conversion of a file of weights to a checkpoint: every key is accounted for; settings that weights do not show are flags or assumed."""

import argparse
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import FORMAT, with_sources
from brainseg_jax.core.errors import InputError, first_few
from converters import certify, swin_unetr, unetr
from converters.adapt import adapted
from converters.conversion import UNSEEN, Conversion, digest, summary
from converters.rules import OTHER, Account, Dialect, Leaves, Tensors, at_least, check_weights, their_key, to_ours, written_by
from converters.source import Source, detect, read


class Found(NamedTuple):
    """The network in a file, in our form, with the keys left out on either side under --partial, and notes for the user."""

    dialect: Dialect
    config: ConfigDict
    leaves: Leaves
    tensors: Tensors
    account: Account
    left: list[str]
    notes: list[str]


def convert_file(options: argparse.Namespace) -> Conversion:
    """Writes the checkpoint and returns the conversion of the file's network, before the --to- flags. Raises InputError."""
    source, out = options.source, options.out
    if out.suffix in (".safetensors", ".pt", ".pth"):
        raise InputError(f"{out}: a file is converted into a checkpoint, which is a folder; give a name without {out.suffix}")
    if out.exists():
        raise InputError(f"{out}: exists already and is never overwritten; give another folder, or remove it")
    if options.force:
        raise InputError("--force: replaces a .safetensors file, and a checkpoint is never overwritten; leave it out")
    content = read(source, options.weights)
    try:
        found = _understood(content, options)
        if options.certify:
            certify.check(found.dialect, found.left)
        config, leaves, headless, done = adapted(found.config, found.leaves, options)
    except InputError as refusal:
        raise InputError(f"{source}: {refusal}") from None
    releases = written_by(found.dialect, content.tensors)
    facts = {
        "file": source.name,
        "sha256": digest(source),
        "weights": content.name,
        "dialect": found.dialect.name,
        "monai": releases,
        "merging": config.swin.merging if config.encoder == "swin" else "",
        "left": [*found.left, *headless],
        "adapted": done,
    }
    # Orbax and JAX are slow to import, and the checks above do not need them.
    from brainseg_jax.core.pytree import unflatten
    from brainseg_jax.weights import checkpoint

    checkpoint.write(out, unflatten(leaves), {"config": with_sources(config, set(), source.name), "format": FORMAT, "source": facts})
    report = [
        f"{source}: {found.dialect.what}, dialect {found.dialect.name}" + (f", keys as of MONAI {releases}" if releases else ""),
        *([f"  {content.choice}"] if content.choice else []),
        *_report(found),
        *(f"  {line}" for line in [*done, summary(config, leaves)]),
    ]
    whole = config.objective == "segmentation" and not facts["left"]
    report.append(f"{out}: written" + (f'; use it with brainseg_jax.load("{out}")' if whole else ", to start a training from"))
    return Conversion(found.config, found.leaves, found.tensors, found.dialect, facts, report)


def _understood(content: Source, options: argparse.Namespace) -> Found:
    """The network of a file. Raises InputError for an unknown or incomplete network, or one that contradicts a flag."""
    dialect = detect(content.tensors, options.dialect)
    leaves, account = to_ours(dialect.rows, dialect.dead, content.tensors)
    check_weights({key: content.tensors[key] for key in account.used})
    leaves = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in leaves.items()}
    config, notes = _config(dialect, leaves, content, options)
    missing, surplus = _compare(dialect, config, leaves)
    left = [*account.unknown, *surplus, *missing]
    if left and not options.partial:
        raise InputError(_not_covered(dialect, account, surplus, missing))
    leaves = {path: leaf for path, leaf in leaves.items() if their_key(dialect.rows, path) not in surplus}
    tensors = {key: content.tensors[key] for key, path in account.used.items() if path in leaves}
    if any(tensor.dtype == np.float64 for tensor in tensors.values()):
        notes.append("its float64 numbers were rounded to float32")
    return Found(dialect, config, leaves, tensors, account, left, notes)


def _config(dialect: Dialect, leaves: Leaves, content: Source, options: argparse.Namespace) -> tuple[ConfigDict, list[str]]:
    """The network's config from its dialect, shapes, the file's metadata and flags, and notes on assumptions."""
    sizes = dialect.sizes(leaves)
    for key, value in dialect.fixed.items():
        if sizes.get(key, value) != value:
            raise InputError(f"{key} is {sizes[key]}, and {dialect.what} has {value}; {OTHER}")
    config = base()
    config.update_from_flattened_dict({"steps": 1} | {k: v for k, v in content.told.items() if k in UNSEEN} | dialect.fixed | sizes)
    if options.monai:
        _check_release(dialect, config, options.monai)
    crop = _flag_or_file("--crop", options.crop, content.told.get("data.crop"))
    notes = _vit(config, leaves, content, options, crop) if config.encoder == "vit" else _swin(config, content, options, crop)
    if "decoder" in dialect.parts:
        notes.append("assumed: instance norm without weights and the class's other defaults, which weights do not show")
    return config, notes


def _flag_or_file(flag: str, given: Any, recorded: Any) -> Any:
    """The value of a flag or of the file's metadata. Raises InputError if they contradict each other."""
    if given and recorded and given != recorded:
        raise InputError(f"{flag}: the file says itself that it is {recorded}; leave the flag out")
    return given or recorded


def _check_release(dialect: Dialect, config: ConfigDict, monai: str) -> None:
    """Raises InputError if a release of MONAI has no such network."""
    if not dialect.since and config.encoder == "vit":
        raise InputError("--monai: is for MONAI's networks, and this is none of them; leave it out")
    if dialect.since and not at_least(monai, dialect.since):
        raise InputError(f"--monai {monai}: has no such network; give {dialect.since} or newer")
    if dialect.constructor:
        dialect.constructor(config, monai)


def _vit(config: ConfigDict, leaves: Leaves, content: Source, options: argparse.Namespace, crop: tuple[int, ...] | None) -> list[str]:
    """Sets the config values that a ViT's weights do not show, and returns notes on assumptions."""
    if options.merge:
        raise InputError("--merge: tells the order of patch merging of a Swin network, and this is a ViT; leave it out")
    config.data.crop = unetr.crop_of(leaves, config.vit.patch, crop)
    heads = _flag_or_file("--heads", options.heads, content.told.get("vit.heads"))
    config.vit.heads = heads or config.vit.heads
    if config.vit.width % config.vit.heads:
        raise InputError(
            f"tokens are {config.vit.width} wide, which {config.vit.heads} heads do not divide; give --heads as it was trained"
        )
    if config.objective == "mae" and config.mae.width % config.mae.heads:
        raise InputError(f"its decoder is {config.mae.width} wide, which the paper's {config.mae.heads} heads do not divide; {OTHER}")
    return [] if heads else [f"assumed: {config.vit.heads} attention heads, which weights do not show (else --heads)"]


def _swin(config: ConfigDict, content: Source, options: argparse.Namespace, crop: tuple[int, ...] | None) -> list[str]:
    """Sets the config values that a Swin's weights do not show; there are no assumptions."""
    if options.heads:
        raise InputError("--heads: a Swin network's weights show its heads; leave it out")
    config.data.crop = swin_unetr.checked_crop("--crop", crop or (96, 96, 96))
    config.swin.merging = _merging(content, options)
    return []


def _merging(content: Source, options: argparse.Namespace) -> str:
    if options.merge and options.monai:
        swin_unetr.check_merging(options.merge, options.monai)
    recorded = content.told.get("swin.merging")
    if recorded and options.monai:
        raise InputError(f'--monai: the file says itself that its patch merging is "{recorded}"; leave the flag out')
    if merging := _flag_or_file("--merge", options.merge, recorded):
        return merging
    if options.monai:
        return swin_unetr.merging_of(options.monai)
    # Only the pretraining code from before MONAI's encoder has these names, and it used this order.
    if any(".mlp.fc1." in key for key in content.tensors):
        return "legacy"
    raise InputError(swin_unetr.MERGE_UNKNOWN)


def _compare(dialect: Dialect, config: ConfigDict, leaves: Leaves) -> tuple[list[str], list[str]]:
    """Their keys of parameters missing in the file, and of surplus ones. Raises InputError for another shape."""
    wanted = expected_shapes(config, dialect.parts, leaves)
    for path in wanted:
        if path in leaves and leaves[path].shape != wanted[path]:
            key = their_key(dialect.rows, path)
            raise InputError(f"{key} has {leaves[path].shape} (as laid out here) where {wanted[path]} is expected; {OTHER}")
    missing, surplus = ([their_key(dialect.rows, path) for path in a if path not in b] for a, b in ((wanted, leaves), (leaves, wanted)))
    return missing, surplus


def expected_shapes(config: ConfigDict, parts: tuple[str, ...], leaves: Leaves) -> dict[str, tuple[int, ...]]:
    """The shapes of all leaves of the config's network, by path; `parts`: the parts of it in a dialect."""
    import jax

    from brainseg_jax import objectives
    from brainseg_jax.core.pytree import paths
    from brainseg_jax.models import encoders

    config = config.copy_and_resolve_references()
    config.dtype = "float32"
    key = jax.random.key(0)
    image = jax.ShapeDtypeStruct((1, *config.data.crop, config.channels), "float32")
    if config.objective == "mae":
        network = objectives.OBJECTIVES["mae"](config)
        params = jax.eval_shape(network.init, {"params": key, "mask": key}, {"image": image})["params"]
    elif "decoder" in parts:
        params = jax.eval_shape(encoders.segmenter(config).init, key, image)["params"]
    else:
        params = {"encoder": jax.eval_shape(encoders.encoder(config).init, key, image)["params"]}
    shapes = {path: leaf.shape for path, leaf in paths(params).items()}
    if "rotation" in parts:
        contrast = leaves["contrast/kernel"].shape[1]
        shapes |= swin_unetr.head_shapes(config.swin.width, config.channels, contrast)
    return shapes


def _not_covered(dialect: Dialect, account: Account, surplus: list[str], missing: list[str]) -> str:
    total = len(account.used) + len(account.dead) + len(account.unknown)
    faults = []
    if unknown := [*account.unknown, *surplus]:
        faults.append(
            f"of its {total} keys {len(unknown)} {'has' if len(unknown) == 1 else 'have'} no use in {dialect.what} ({first_few(unknown)})"
        )
    if missing:
        faults.append(f"of {dialect.what} it lacks {first_few(missing)}")
    return f"{' and '.join(faults)}; find the file of an unchanged network, or add --partial to convert the rest and list what is left out"


def _report(found: Found) -> list[str]:
    account = found.account
    total = len(account.used) + len(account.dead) + len(account.unknown)
    lines = [f"  {total} keys: {len(account.used)} used, {len(account.dead)} that no forward pass uses, {len(account.unknown)} unknown"]
    reasons: dict[str, list[str]] = {}
    for key, reason in account.dead.items():
        reasons.setdefault(reason, []).append(key)
    lines += [f"  not used: {first_few(keys)}: {reason}" for reason, keys in reasons.items()]
    return [*lines, *(f"  left out: {key}" for key in found.left), *(f"  {note}" for note in found.notes)]
