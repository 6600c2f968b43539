"""Conversion of a checkpoint to a .safetensors file with the keys of a release of MONAI, or of the paper's code."""

import argparse
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.config.keys import get_key
from brainseg_jax.config.resolve import FORMAT, check_format, from_resolved
from brainseg_jax.core.errors import InputError
from brainseg_jax.models.encoders import ENCODERS
from brainseg_jax.weights import safetensors
from converters import certify, swin_unetr
from converters.conversion import UNSEEN, Conversion, digest, summary
from converters.rules import MONAI, Dialect, Leaves, at_least, check_weights, synthesise, to_theirs
from converters.source import DIALECTS, METADATA


def convert_checkpoint(options: argparse.Namespace) -> Conversion:
    """Writes the file and returns the conversion. Raises InputError for a network that the dialect or release cannot represent."""
    from brainseg_jax.core.pytree import paths
    from brainseg_jax.weights import checkpoint

    source, out = options.source, options.out
    checkpoint.card(source)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: a checkpoint is converted into a safetensors file; give a name that ends in .safetensors")
    if out.is_dir() or out.absolute().is_relative_to(source.absolute()):
        raise InputError(f"{out}: is a folder, or lies in the checkpoint; give another name")
    if out.exists() and not options.force:
        raise InputError(f"{out}: exists already; give another name, or --force to replace it")
    for flag in ("to_channels", "to_classes", "to_crop", "crop", "heads", "partial", "weights"):
        if getattr(options, flag):
            raise InputError(f"--{flag.replace('_', '-')}: is for files that become checkpoints; {source} is a checkpoint already")
    params, card = checkpoint.load(source)
    try:
        if "config" not in card:
            raise InputError("its card has no config, so its network is unknown; convert a checkpoint of this version")
        check_format(card.get("format", FORMAT), "its card")
        config, leaves = from_resolved(card["config"], "its card"), paths(params)
        dialect = _dialect_for(config, leaves, options.dialect)
        description = summary(config, leaves)
        exported = {path: leaf for path, leaf in leaves.items() if path.split("/")[0] in dialect.parts}
        left, leaves = sorted({path.split("/")[0] for path in leaves.keys() - exported.keys()}), exported
        if options.certify:
            certify.check(dialect, [])
        monai = options.monai or MONAI[-1]
        if dialect.since and not at_least(monai, dialect.since):
            raise InputError(f"MONAI {monai} has no such network; use --monai {dialect.since} or newer")
        if config.encoder == "swin":
            config, leaves = swin_unetr.for_release(config, leaves, monai, options.merge)
        elif options.merge:
            raise InputError("--merge: is for Swin networks; leave it out")
        tensors = to_theirs(dialect.rows, leaves, config.channels)
        check_weights(tensors)
        arguments = dialect.constructor(config, monai) if dialect.constructor else None
    except InputError as refusal:
        raise InputError(f"{source}: {refusal}") from None
    unused = synthesise(dialect.dead, tensors, monai)
    unseen = {key: get_key(config, key) for key in UNSEEN if key.split(".")[0] in (config.encoder, config.objective, "data")}
    safetensors.write(out, tensors | unused, {"format": "pt", METADATA: json.dumps(unseen)})
    for_monai = f" for MONAI {monai}" if dialect.since else ""
    report = [
        f"{source}: {description}",
        f"{out}: {dialect.what}, dialect {dialect.name}{for_monai}; {len(tensors)} tensors"
        + (f", and {len(unused)} that it expects and no forward pass uses" if unused else ""),
        *([f"  left out: {', '.join(left)}"] if left else []),
        snippet(out, arguments, dialect.holds),
    ]
    facts = {
        "file": out.name,
        "sha256": digest(out),
        "dialect": dialect.name,
        "monai": monai if dialect.since else "",
        "merging": config.swin.merging if config.encoder == "swin" else "",
        "adapted": [],
    }
    return Conversion(config, leaves, tensors, dialect, facts, report)


def snippet(out: Path, arguments: tuple[str, dict[str, Any]] | None, holds: str = "net") -> str:
    """Two lines of Python that load an exported file, into MONAI's class or into a `net` of other code."""
    load = f"{holds}.load_state_dict(safetensors.torch.load_file({str(out)!r}), strict=True)"
    if arguments is None:
        return f"import safetensors.torch  # net: the network of the code that wrote such files\n{load}"
    name, values = arguments
    listed = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return f"import monai, safetensors.torch; net = monai.networks.nets.{name}({listed}).eval()\n{load}"


def _dialect_for(config: ConfigDict, leaves: Leaves, wanted: str) -> Dialect:
    """The wanted dialect, possibly one for encoders only, or the first that can represent the network. Raises InputError, with the reason,
    if it cannot, or none can."""
    if wanted:
        dialect = next(d for d in DIALECTS if d.name == wanted)
        if dialect.parts == ("encoder",):
            leaves = {path: leaf for path, leaf in leaves.items() if path.startswith("encoder/")}
            config = config.copy_and_resolve_references()
            config.objective = dialect.fixed["objective"]  # whatever the encoder was trained by
        if fault := _fault(dialect, config, leaves):
            raise InputError(f"cannot be written as {wanted}: {fault}; leave out --dialect")
        return dialect
    if config.encoder not in {d.fixed["encoder"] for d in DIALECTS}:
        title = ENCODERS[config.encoder].title
        raise InputError(f"holds a {title}, which MONAI does not have; it can be used from here only: load or predict with it as it is")
    alike = [d for d in DIALECTS if (d.fixed["encoder"], d.fixed["objective"]) == (config.encoder, config.objective) and d.written]
    faults = [_fault(d, config, leaves) for d in alike]
    if "" in faults:
        return alike[faults.index("")]
    if config.objective == "segmentation" and "head" not in {path.split("/")[0] for path in leaves}:
        raise InputError("has no head, which --to-classes or --partial left out; train it, then convert it")
    reasons = "; ".join(f"{d.name}: {fault}" for d, fault in zip(alike, faults, strict=True)) or f"{config.objective} of {config.encoder}"
    raise InputError(f"no network of theirs is like this one ({reasons}); it can be used from here only")


def _fault(dialect: Dialect, config: ConfigDict, leaves: Leaves) -> str:
    """The reason why a dialect cannot represent the network, or "" if it can."""
    if not dialect.written:
        return "such files are read only"
    parts = sorted({path.split("/")[0] for path in leaves})
    for key, value in dialect.fixed.items():
        if (mine := get_key(config, key)) != value:
            return f"{key} is {mine} where it has {value}"
    if parts != sorted(dialect.parts):
        return f"the checkpoint has {', '.join(parts)} where it has {', '.join(sorted(dialect.parts))}"
    return ""
