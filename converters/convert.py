"""`python -m converters.convert IN OUT`: weights between PyTorch's files and our checkpoints, in the direction that IN and OUT say.

A file (.pt, .pth, .safetensors) becomes a checkpoint: a folder that `brainseg_jax.load` takes. A checkpoint becomes a .safetensors file in
MONAI's keys, or in those of the paper's code. The kind of file is told by its keys; what cannot be seen is asked for. Every key is
accounted for, and one without a use is an error unless --partial. Numbers are never changed unless a --to- flag asks for it.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax import safetensors
from brainseg_jax.config import base, c_get, from_resolved, with_sources
from brainseg_jax.errors import InputError
from converters import certify, paper, swin_unetr, torchfile, unetr
from converters.rules import MONAI, Account, Dialect, Leaves, Tensors, at_least, origin, release, synthesise, their_key, to_ours, to_theirs

DIALECTS = (unetr.UNETR, paper.UNETR, swin_unetr.SWIN_UNETR, swin_unetr.SSL, swin_unetr.SWINVIT, swin_unetr.DISRUPTIVE, paper.MAE)
WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net")  # where files keep the weights
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")  # what wrapping a network puts before all keys
METADATA = "brainseg_jax"  # the entry of a safetensors file where export writes down what shapes do not tell
UNSEEN = ("vit.heads", "mae.heads", "mae.mask_ratio", "swin.merging", "data.crop")


class Source(NamedTuple):
    """What a file holds: its tensors under keys without prefixes, and values of our config that it tells of itself."""

    tensors: Tensors
    told: dict[str, Any]


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
    try:
        options = _parser().parse_args(argv)
        options.monai = release(options.monai) if options.monai else ""
        done = _export(options) if options.source.is_dir() else _import(options)
        if options.certify:
            done.report.extend(certify.write(options.out, done.config, done.leaves, done.tensors, done.dialect, done.facts))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; check the place and its permissions", file=sys.stderr)
        return 2
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
    done = _adapted(as_read, options)
    from brainseg_jax import checkpoint

    card = {"config": with_sources(done.config, set(), source.name), "format": 1, "source": done.facts}
    checkpoint.write(out, tree(done.leaves), card)
    report.append(f"  {_summary(done.config, done.leaves)}")
    whole = config.objective == "segmentation" and not done.facts["left"]
    report.append(f"{out}: written" + (f'; use it with brainseg_jax.load("{out}")' if whole else ", to start a training from"))
    return as_read


def read(path: Path) -> Source:
    """The weights in a file, PyTorch's or safetensors. Raises InputError if there are none."""
    told: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        tensors, metadata = safetensors.read(path)
        if METADATA in metadata:
            told = _json(path, metadata[METADATA])
    else:
        tensors = _weights(torchfile.read(path))
    tensors = _without_prefixes(tensors)
    if not tensors:
        raise InputError(f"{path}: holds no weights; a file of torch.save(model.state_dict(), file) is expected")
    return Source(tensors, told)


def detect(tensors: Tensors, wanted: str = "") -> Dialect:
    """The first dialect whose marks are all among the keys, or the wanted one. Raises InputError if there is none, or it is another."""
    lacks = {d.name: [mark for mark in d.marks if mark not in tensors] for d in DIALECTS}
    fitting = [d for d in DIALECTS if not lacks[d.name]]
    if wanted:
        if lacks[wanted]:
            looks = f"it looks like {fitting[0].name}" if fitting else f"its {len(tensors)} keys are like {_some(tensors)}"
            raise InputError(f"is no {wanted}, which has {lacks[wanted][0]}; {looks}")
        return next(d for d in fitting if d.name == wanted)
    if not fitting:
        nearest = min(DIALECTS, key=lambda d: len(lacks[d.name]) / len(d.marks))
        hint = f"nearest is {nearest.name}, without {_some(lacks[nearest.name])}" if len(lacks[nearest.name]) < len(nearest.marks) else ""
        known = f"known are {', '.join(d.name for d in DIALECTS)}"
        raise InputError(f"its {len(tensors)} keys, like {_some(tensors)}, are of no network known here; {hint or known}")
    return fitting[0]


def _weights(content: dict[str, Any]) -> Tensors:
    for name in WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, dict) and any(isinstance(value, np.ndarray) for value in inner.values()):
            content = inner
            break
    return {str(key): value for key, value in content.items() if isinstance(value, np.ndarray)}


def _without_prefixes(tensors: Tensors) -> Tensors:
    prefixes = (*PREFIXES, "swin_vit.", "swinViT.")  # the last two: a Swin encoder that was saved alone
    while tensors and (shared := [p for p in prefixes if all(key.startswith(p) for key in tensors)]):
        tensors = {key.removeprefix(shared[0]): tensor for key, tensor in tensors.items()}
    renamed = {re.sub(r"^swin_vit\.", "swinViT.", key): tensor for key, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise InputError("its keys begin with both swin_vit. and swinViT.; keep one of them")
    return renamed


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
        faults.append(f"{len(unknown)} of its {total} keys have no use ({_some(unknown)})")
    if missing:
        faults.append(f"{len(missing)} are missing ({_some(missing)})")
    return f"{' and '.join(faults)} in {dialect.what}, which covers {covered} %; get the whole file, or add --partial to leave them out"


def _adapted(done: Converted, options: argparse.Namespace) -> Converted:
    """The network for other images, as the --to- flags ask."""
    config, leaves, facts = ConfigDict(done.config), dict(done.leaves), dict(done.facts)
    adapted = []
    if options.to_channels and options.to_channels != config.channels:
        leaves = to_channels(leaves, config.channels, options.to_channels)
        adapted.append(f"channels {config.channels} to {options.to_channels}: all take the mean kernel, scaled")
        config.channels = options.to_channels
    if options.to_classes and options.to_classes != config.classes and "head/kernel" in leaves:
        head = [path for path in leaves if path.startswith("head/")]
        leaves = {path: leaf for path, leaf in leaves.items() if path not in head}
        facts["left"] = [*facts["left"], *head]
        adapted.append(f"classes {config.classes} to {options.to_classes}: the head is left out, to be trained anew")
        config.classes = options.to_classes
    if options.to_crop and options.to_crop != tuple(config.data.crop):
        if config.encoder == "vit":
            leaves = to_crop(leaves, config.vit.patch, tuple(config.data.crop), options.to_crop)
            adapted.append(f"crop {tuple(config.data.crop)} to {options.to_crop}: positions interpolated")
        config.data.crop = options.to_crop
    done.report.extend(f"  {line}" for line in adapted)
    return done._replace(config=config, leaves=leaves, facts=facts | {"adapted": adapted})


def to_channels(leaves: Leaves, old: int, new: int) -> Leaves:
    """The network for images of `new` channels: an image whose channels are all alike gives what it gave before.

    Raises InputError for heads that reconstruct the image, and where a decoder would need another shortcut.
    """
    if any(path.split("/")[0] not in ("encoder", "decoder", "head") for path in leaves):
        raise InputError("--to-channels: the heads of pretraining reconstruct the image they were trained on; leave it out")

    def mean(kernel: np.ndarray) -> np.ndarray:
        by_channel = kernel.reshape(*kernel.shape[:-2], -1, old, kernel.shape[-1])
        spread = np.repeat(by_channel.mean(axis=-2, keepdims=True), new, axis=-2) * np.float32(old / new)
        return spread.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])

    first = ("encoder/patch_embed/kernel", "decoder/encoder1/conv1/kernel", "decoder/encoder1/conv3/kernel")
    width = leaves["decoder/encoder1/conv1/kernel"].shape[-1] if first[1] in leaves else 0
    if width in (old, new):
        raise InputError(f"--to-channels {new}: a decoder of {width} channels adds its image without a convolution; train it anew")
    return {path: mean(leaf) if path in first else leaf for path, leaf in leaves.items()}


def to_crop(leaves: Leaves, patch: int, old: tuple[int, int, int], new: tuple[int, int, int]) -> Leaves:
    """Learned positions for another crop, by linear interpolation (antialiased where the grid becomes smaller)."""
    import jax

    if any(n % patch for n in new):
        raise InputError(f"--to-crop {','.join(map(str, new))}: give multiples of the patch, {patch}")
    (x, *plane), (x_new, *plane_new) = ([n // patch for n in crop] for crop in (old, new))
    grids = {"table": ((x, *plane), (x_new, *plane_new)), "spatial": (plane, plane_new), "temporal": ((x,), (x_new,))}

    def resized(path: str, leaf: np.ndarray) -> np.ndarray:
        *_, part, name = ("", *path.split("/"))
        if part != "position":
            return leaf
        grid, grid_new = grids[name]
        width = leaf.shape[-1]
        return np.asarray(jax.image.resize(leaf.reshape(*grid, width), (*grid_new, width), "linear")).reshape(-1, width)

    return {path: resized(path, leaf) for path, leaf in leaves.items()}


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
    lines += [f"  dead: {_some(keys)}: {reason}" for reason, keys in reasons.items()]
    return lines + [f"  left out: {key}" for key in left]


def _summary(config: ConfigDict, leaves: Leaves) -> str:
    if config.encoder == "vit":
        network = f"ViT {config.vit.width} wide, {config.vit.depth} deep, {config.vit.heads} heads, crops {tuple(config.data.crop)}"
    else:
        network = f"Swin {config.swin.width} wide, merging {config.swin.merging}{', v2' if config.swin.v2 else ''}"
    classes = f", {config.classes} classes" if config.objective == "segmentation" else ""
    channels = f"{config.channels} channel{'s' * (config.channels > 1)}"
    return f"{network}, {channels}{classes}; {sum(leaf.size for leaf in leaves.values()):,} parameters"


def _some(keys: Any) -> str:
    keys = list(keys)
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


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


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
        return {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    except (ValueError, AttributeError):
        raise InputError(f"{path}: its {METADATA} metadata are no JSON object; write the file again") from None


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
