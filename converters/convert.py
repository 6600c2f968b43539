"""`python -m converters.convert IN OUT`: weights between PyTorch's files and our checkpoints, in the direction that IN and OUT say.

A file (.pt, .pth, .safetensors) becomes a checkpoint: a folder that `brainseg_jax.load` takes. A checkpoint becomes a .safetensors file in
MONAI's keys, or in those of the paper's code. The kind of file is told by its keys; what cannot be seen is asked for. Every key is
accounted for, and one without a use is an error unless --partial. Numbers are never changed unless a --to- flag asks for it.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax import safetensors
from brainseg_jax.config import base, c_get, from_resolved, with_sources
from brainseg_jax.errors import InputError, exit_code
from converters import certify, swin_unetr, unetr
from converters.adapt import adapted
from converters.rules import MONAI, Account, Dialect, Leaves, Tensors, at_least, origin, release, synthesise, their_key, to_ours, to_theirs
from converters.source import DIALECTS, METADATA, Source, detect, read, some

UNSEEN = ("vit.heads", "mae.heads", "mae.mask_ratio", "swin.merging", "data.crop")


class Converted(NamedTuple):
    """A conversion that is done: our network, the tensors on their side, and what a card or certificate says about it."""

    config: ConfigDict
    leaves: Leaves
    tensors: Tensors
    dialect: Dialect
    facts: dict[str, Any]
    report: list[str]


def main(argv: list[str] | None = None) -> int:
    """Converts as the command line says and prints an account. What the user can mend is one line on stderr, and 2 is returned."""
    return exit_code(lambda: convert(_parser().parse_args(argv)))


def convert(options: argparse.Namespace) -> int:
    """Converts, compares with MONAI if asked to, and prints an account."""
    options.monai = release(options.monai) if options.monai else ""
    done = _export(options) if options.source.is_dir() else _import(options)
    if options.certify:
        done.report.extend(certify.write(options.out, done.config, done.leaves, done.tensors, done.dialect, done.facts))
    print("\n".join(done.report))
    return 0


# ---- from a file


def _import(options: argparse.Namespace) -> Converted:
    source, out = options.source, options.out
    if out.suffix in (".safetensors", ".pt", ".pth"):
        raise InputError(f"{out}: a file is converted into a checkpoint, which is a folder; give a name without {out.suffix}")
    if out.exists():
        raise InputError(f"{out}: exists already and is never overwritten; give another folder, or remove it")
    found = read(source)
    try:
        dialect = detect(found.tensors, options.dialect)
        rounded = sorted({str(t.dtype) for t in found.tensors.values()} & {"float64"})
        leaves, account = to_ours(dialect.rows, dialect.dead, found.tensors)
        _check_numbers(dialect, leaves)
        config = _config(dialect, leaves, found, options)
        missing, surplus = _compare(dialect, config, leaves)
        left = [*account.unknown, *surplus, *missing]
        if left and not options.partial:
            raise InputError(_not_covered(dialect, account, surplus, missing))
        if options.certify:
            certify.check(dialect, left)
    except InputError as refusal:
        raise InputError(f"{source}: {refusal}") from None
    leaves = {path: leaf for path, leaf in leaves.items() if their_key(dialect.rows, path) not in surplus}
    tensors = {key: found.tensors[key] for key, path in account.used.items() if path in leaves}
    monai = origin(dialect, found.tensors)
    facts = {
        "file": source.name,
        "sha256": _digest(source),
        "dialect": dialect.name,
        "monai": monai,
        "merging": config.swin.merging if config.encoder == "swin" else "",
        "left": left,
    }
    report = [f"{source}: {dialect.what} ({dialect.name})" + (f", as MONAI {monai} writes it" if monai else ""), *_told(account, left)]
    if rounded:
        report.append("  its float64 numbers were rounded to float32")
    as_read = Converted(config, leaves, tensors, dialect, facts, report)
    config, leaves, without, done = adapted(config, leaves, options)
    from brainseg_jax import checkpoint

    facts = facts | {"left": [*left, *without], "adapted": done}
    card = {"config": with_sources(config, set(), source.name), "format": 1, "source": facts}
    checkpoint.write(out, tree(leaves), card)
    report += [f"  {line}" for line in [*done, _summary(config, leaves)]]
    whole = config.objective == "segmentation" and not facts["left"]
    report.append(f"{out}: written" + (f'; use it with brainseg_jax.load("{out}")' if whole else ", to start a training from"))
    return as_read


def _check_numbers(dialect: Dialect, leaves: Leaves) -> None:
    """Leaves become float32; integers, NaN and infinity are refused."""
    for path, leaf in leaves.items():
        key = their_key(dialect.rows, path)
        if leaf.dtype.kind in "iub":
            raise InputError(f"{key} holds {leaf.dtype} numbers, and weights are floats; convert the file it was made from")
        with np.errstate(over="ignore"):
            leaf = np.ascontiguousarray(leaf, np.float32)
        if faults := np.count_nonzero(~np.isfinite(leaf)):
            raise InputError(f"{key} holds NaN or infinity ({faults} of {leaf.size} numbers); use a checkpoint from before training failed")
        leaves[path] = leaf


def _config(dialect: Dialect, leaves: Leaves, found: Source, options: argparse.Namespace) -> ConfigDict:
    """The network in our config: what all of the dialect share, what shapes tell, what the file tells, what the command line says."""
    sizes = dialect.sizes(leaves)
    for key, value in dialect.fixed.items():
        if sizes.get(key, value) != value:
            raise InputError(f"{key} is {sizes[key]}, and {dialect.what} has {value}; this is another network, or a part of one")
    config = base()
    config.update_from_flattened_dict({"steps": 1} | {k: v for k, v in found.told.items() if k in UNSEEN} | dialect.fixed | sizes)
    crop = options.crop or (tuple(found.told["data.crop"]) if "data.crop" in found.told else None)
    if config.encoder == "vit":
        config.data.crop = unetr.crop_of(leaves, config.vit.patch, crop)
        config.vit.heads = options.heads or config.vit.heads
        for width, heads in (("vit.width", "vit.heads"), *([("mae.width", "mae.heads")] if config.objective == "mae" else [])):
            if c_get(config, width) % c_get(config, heads):
                raise InputError(
                    f"{heads}, which weights do not show, cannot be {c_get(config, heads)} of {c_get(config, width)}; give --heads"
                )
    else:
        config.data.crop = crop or (96, 96, 96)
        config.swin.merging = _merging(found, options)
    return config


def _merging(found: Source, options: argparse.Namespace) -> str:
    if options.merge:
        return options.merge
    if "swin.merging" in found.told:
        return found.told["swin.merging"]
    if options.monai:
        return swin_unetr.merging_of(options.monai)
    # The pretraining code from before MONAI had the encoder, the only one with these names, had this order.
    if any(".mlp.fc1." in key for key in found.tensors):
        return "legacy"
    raise InputError(swin_unetr.MERGE_UNKNOWN)


def _compare(dialect: Dialect, config: ConfigDict, leaves: Leaves) -> tuple[list[str], list[str]]:
    """Their keys of what our network has and the file lacks, and the other way round. Raises InputError for another shape."""
    wanted = expected_shapes(config, dialect.parts, leaves)
    for path in wanted.keys() & leaves.keys():
        if leaves[path].shape != wanted[path]:
            key = their_key(dialect.rows, path)
            raise InputError(f"{key} has {leaves[path].shape} (laid out as ours) where {wanted[path]} is expected; this is another network")
    missing, surplus = ([their_key(dialect.rows, path) for path in a if path not in b] for a, b in ((wanted, leaves), (leaves, wanted)))
    return missing, surplus


def expected_shapes(config: ConfigDict, parts: tuple[str, ...], leaves: Leaves) -> dict[str, tuple[int, ...]]:
    """Shapes of all leaves that the config's network has, by path; `parts`: what of it a dialect holds."""
    import jax

    from brainseg_jax import models, objectives
    from brainseg_jax.trees import paths

    config = ConfigDict(config)
    config.dtype = "float32"
    key = jax.random.key(0)
    image = jax.ShapeDtypeStruct((1, *config.data.crop, config.channels), "float32")
    if config.objective == "mae":
        network = objectives.OBJECTIVES["mae"](config)
        tree = jax.eval_shape(network.init, {"params": key, "mask": key}, {"image": image})["params"]
    elif "decoder" in parts:
        tree = jax.eval_shape(models.segmenter(config).init, key, image)["params"]
    else:
        tree = {"encoder": jax.eval_shape(models.ENCODERS[config.encoder](config).init, key, image)["params"]}
    shapes = {path: leaf.shape for path, leaf in paths(tree).items()}
    if "rotation" in parts:
        contrast = leaves["contrast/kernel"].shape[1]
        shapes |= swin_unetr.head_shapes(config.swin.width, config.channels, contrast)
    return shapes


def _not_covered(dialect: Dialect, account: Account, surplus: list[str], missing: list[str]) -> str:
    total = len(account.used) + len(account.dead) + len(account.unknown)
    covered = 100 * (len(account.used) + len(account.dead) - len(surplus)) // total
    faults = []
    if unknown := [*account.unknown, *surplus]:
        faults.append(f"{len(unknown)} of its {total} keys have no use ({some(unknown)})")
    if missing:
        faults.append(f"{len(missing)} are missing ({some(missing)})")
    return f"{' and '.join(faults)} in {dialect.what}, which covers {covered} %; get the whole file, or add --partial to leave them out"


# ---- from a checkpoint


def _export(options: argparse.Namespace) -> Converted:
    source, out = options.source, options.out
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: a checkpoint is converted into a safetensors file; give a name that ends in .safetensors")
    if out.exists() and not options.force:
        raise InputError(f"{out}: exists already; give another name, or --force to replace it")
    for flag in ("to_channels", "to_classes", "to_crop", "crop", "heads", "partial"):
        if getattr(options, flag):
            raise InputError(f"--{flag.replace('_', '-')}: is for files that become checkpoints; {source} is a checkpoint already")
    from brainseg_jax import checkpoint
    from brainseg_jax.trees import paths

    params, card = checkpoint.load(source)
    try:
        if "config" not in card:
            raise InputError("its card has no config, so its network is unknown; convert a checkpoint of this version")
        config, leaves = from_resolved(card["config"]), paths(params)
        dialect = _dialect_for(config, leaves, options.dialect)
        if options.certify:
            certify.check(dialect, [])
        monai = options.monai or MONAI[-1]
        if dialect.since and not at_least(monai, dialect.since):
            raise InputError(f"MONAI {monai} has no such network; use --monai {dialect.since} or newer")
        ours = leaves
        if config.encoder == "swin":
            config.swin.merging, before = swin_unetr.exported_merging(config.swin.merging, monai, options.merge), config.swin.merging
            ours = swin_unetr.reorder(leaves, before, config.swin.merging)
        elif options.merge:
            raise InputError("--merge: is for Swin networks; leave it out")
        _check_numbers(dialect, ours)
        theirs = to_theirs(dialect.rows, ours, config.channels)
        arguments = dialect.constructor(config, monai) if dialect.constructor else None
    except InputError as refusal:
        raise InputError(f"{source}: {refusal}") from None
    dead = synthesise(dialect.dead, theirs, monai)
    told = {key: c_get(config, key) for key in UNSEEN if key.split(".")[0] in (config.encoder, config.objective, "data")}
    safetensors.write(out, theirs | dead, {"format": "pt", METADATA: json.dumps(told)})
    for_monai = f" for MONAI {monai}" if dialect.since else ""
    report = [
        f"{source}: {_summary(config, ours)}",
        f"{out}: {dialect.what} ({dialect.name}){for_monai}; {len(theirs)} tensors"
        + (f", {len(dead)} dead ones it expects" if dead else ""),
        snippet(out, arguments, dialect.holds),
    ]
    facts = {
        "file": out.name,
        "sha256": _digest(out),
        "dialect": dialect.name,
        "monai": monai if dialect.since else "",
        "merging": config.swin.merging if config.encoder == "swin" else "",
    }
    return Converted(config, ours, theirs, dialect, facts, report)


def snippet(out: Path, arguments: tuple[str, dict[str, Any]] | None, holds: str = "net") -> str:
    """Two lines of Python that load an exported file: into MONAI's class, or into a `net` of code that is not MONAI's."""
    load = f"{holds}.load_state_dict(safetensors.torch.load_file({str(out)!r}))"
    if arguments is None:
        return f"import safetensors.torch  # net: the network of the code that wrote such files\n{load}"
    name, values = arguments
    listed = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return f"import monai, safetensors.torch; net = monai.networks.nets.{name}({listed})\n{load}"


def _dialect_for(config: ConfigDict, leaves: Leaves, wanted: str) -> Dialect:
    faults = {d.name: _unfit(d, config, leaves) for d in DIALECTS if d is not swin_unetr.DISRUPTIVE}
    if wanted:
        fault = faults.get(wanted, "it can be read only")
        if fault:
            raise InputError(f"cannot be written as {wanted}: {fault}")
        return next(d for d in DIALECTS if d.name == wanted)
    fitting = [d for d in DIALECTS if not faults.get(d.name, "read only")]
    if not fitting:
        alike = [d for d in DIALECTS if d.fixed["encoder"] == config.encoder and d.fixed["objective"] == config.objective]
        reasons = "; ".join(f"{d.name}: {faults[d.name]}" for d in alike if d.name in faults)
        raise InputError(
            f"no network of theirs is like this one ({reasons or f'{config.objective} of {config.encoder}'}); use it from here"
        )
    return fitting[0]


def _unfit(dialect: Dialect, config: ConfigDict, leaves: Leaves) -> str:
    """Why a dialect cannot hold the network, or "" if it can."""
    parts = sorted({path.split("/")[0] for path in leaves})
    if parts != sorted(dialect.parts):
        return f"the checkpoint has {', '.join(parts)} where it has {', '.join(sorted(dialect.parts))}"
    for key, value in dialect.fixed.items():
        if (mine := c_get(config, key)) != value:
            return f"{key} is {mine} where it has {value}"
    return ""


# ---- in words


def _told(account: Account, left: list[str]) -> list[str]:
    total = len(account.used) + len(account.dead) + len(account.unknown)
    lines = [f"  {total} keys: {len(account.used)} used, {len(account.dead)} dead, {len(account.unknown)} unknown"]
    reasons: dict[str, list[str]] = {}
    for key, reason in account.dead.items():
        reasons.setdefault(reason, []).append(key)
    lines += [f"  dead: {some(keys)}: {reason}" for reason, keys in reasons.items()]
    return lines + [f"  left out: {key}" for key in left]


def _summary(config: ConfigDict, leaves: Leaves) -> str:
    if config.encoder == "vit":
        network = f"ViT {config.vit.width} wide, {config.vit.depth} deep, {config.vit.heads} heads, crops {tuple(config.data.crop)}"
    else:
        network = f"Swin {config.swin.width} wide, merging {config.swin.merging}{', v2' if config.swin.v2 else ''}"
    classes = f", {config.classes} classes" if config.objective == "segmentation" else ""
    channels = f"{config.channels} channel{'s' * (config.channels > 1)}"
    return f"{network}, {channels}{classes}; {sum(leaf.size for leaf in leaves.values()):,} parameters"


def tree(leaves: Leaves) -> dict[str, Any]:
    """The nested dictionary of leaves by path."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return root


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(f"{message}; see python -m converters.convert --help")


def _crop(text: str) -> tuple[int, int, int]:
    sides = tuple(int(side) for side in text.split(","))
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(text)
    return sides


_crop.__name__ = "X,Y,Z"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m converters.convert", description="Weights between PyTorch's files and our checkpoints.", allow_abbrev=False)
    parser.add_argument("source", metavar="IN", type=Path, help="a .pt, .pth or .safetensors file, or the folder of a checkpoint")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder, or the .safetensors file, to write")
    parser.add_argument("--dialect", default="", choices=[d.name for d in DIALECTS], help="the kind of file, where it is not detected")
    merges = ("legacy", "merging", "mergingv2")
    parser.add_argument("--merge", default="", choices=merges, help="order of patch merging: the file's, or the one to write")
    parser.add_argument("--monai", default="", help="the version that the file comes from, or that it is written for (default 1.6)")
    parser.add_argument("--crop", type=_crop, metavar="X,Y,Z", help="the crop that a ViT file is for, where it is no cube")
    parser.add_argument("--heads", type=int, help="attention heads of a ViT file (default 12): weights do not show them")
    parser.add_argument("--to-channels", type=int, metavar="N", help="change the network for images of N channels")
    parser.add_argument("--to-classes", type=int, metavar="N", help="change it for N classes: the head is left out")
    parser.add_argument("--to-crop", type=_crop, metavar="X,Y,Z", help="change it for another crop: positions are interpolated")
    parser.add_argument("--partial", action="store_true", help="convert what there is, and list what is left out or missing")
    parser.add_argument("--certify", action="store_true", help="compare with MONAI, if installed; write a certificate beside OUT")
    parser.add_argument("--force", action="store_true", help="replace an existing .safetensors file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
