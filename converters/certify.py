"""Certificates that a converted network equals MONAI's, for each block and as a whole, in float32 and float64, on random input.

The only file of the converters that imports PyTorch and MONAI, and only for --certify.
"""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import write_text
from brainseg_jax.models.encoders import ENCODERS
from converters import swin_unetr
from converters.rules import MONAI, Dialect, Leaves, Tensors, at_least, place, synthesise, to_ours, to_theirs

PACKAGES = ("brainseg_jax", "jax", "flax", "numpy", "torch", "monai")
# Largest difference due to rounding, relative to the largest value of an output.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
WHOLE = "whole network"


def write(out: Path, config: ConfigDict, leaves: Leaves, tensors: Tensors, dialect: Dialect, facts: dict[str, Any]) -> list[str]:
    """Writes OUT.certificate.json and .md beside `out`, and returns the lines of a report.

    `leaves` are the network, `tensors` the same in the file, `facts` those of the conversion. Raises InputError, after writing, if the
    networks differ.
    """
    certificate = certify(config, leaves, tensors, dialect, facts)
    files = places(out)
    for file, text in zip(files, (json.dumps(certificate, indent=1) + "\n", markdown(certificate)), strict=True):
        write_text(file, text)
    total = certificate["blocks"][WHOLE]
    worst = ", ".join(f"{dtype} {total[dtype]['relative']:.1e}" for dtype in TOLERANCE)
    if not certificate["passed"]:
        raise InputError(f"{files[1]}: the converted network is not MONAI's (relative difference {worst}); do not use it, and report this")
    return [f"{files[1]}: equal to MONAI {certificate['versions']['monai']} (relative difference {worst})"]


def places(out: Path) -> list[Path]:
    """The certificate's files beside a converted one. Raises InputError if they cannot be written."""
    files = [out.with_name(f"{out.name}.certificate.{suffix}") for suffix in ("json", "md")]
    for file in files:
        if file.is_dir():
            raise InputError(f"{file}: is a folder, where the certificate belongs; move it away")
    return files


def check(dialect: Dialect, left: list[str]) -> None:
    """Raises InputError, before anything is written, if a certificate is not possible, e.g. since the keys `left` are left out."""
    if not dialect.constructor:
        raise InputError(f"--certify: compares with MONAI's networks, and MONAI has none for {dialect.name}; leave it out")
    if left:
        raise InputError("--certify: compares whole networks; leave out --partial, or leave out --certify")
    for package in ("torch", "monai", "einops"):  # MONAI's networks require einops, the package does not
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f'--certify: {package} is not installed; pip install "brainseg_jax[test]", or leave it out') from None
    _installed()


def certify(config: ConfigDict, leaves: Leaves, tensors: Tensors, dialect: Dialect, facts: dict[str, Any]) -> dict[str, Any]:
    """The certificate, ready for JSON: each block's difference by path, versions, and whether the round trip is bit-equal."""
    config = config.copy_and_resolve_references()
    if not ENCODERS[config.encoder].fixed_size:
        config.data.crop = (64, 64, 64)
    image = np.random.default_rng(0).normal(size=(1, *config.data.crop, config.channels))
    blocks: dict[str, dict[str, Any]] = {}
    for dtype in TOLERANCE:
        ours, theirs = _ours(config, leaves, dialect, image, dtype), _theirs(config, leaves, dialect, image, dtype)
        for path, expected in theirs.items():
            absolute = float(np.max(np.abs(ours[path].reshape(expected.shape).astype(np.float64) - expected)))
            blocks.setdefault(path, {})[dtype] = {"absolute": absolute, "relative": absolute / float(np.max(np.abs(expected)))}
    trip = _bit_equal(config, leaves, tensors, dialect)
    return {
        **{key: facts[key] for key in ("file", "sha256", "dialect", "merging")},
        "written_for_monai": facts["monai"],
        "changed_afterwards": facts["adapted"],
        "image": list(image.shape),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "tolerance": TOLERANCE,
        "blocks": blocks,
        "round_trip": {"tensors": len(tensors), "bit_equal": trip},
        "passed": trip and all(blocks[WHOLE][dtype]["relative"] <= limit for dtype, limit in TOLERANCE.items()),
    }


def markdown(certificate: dict[str, Any]) -> str:
    """The certificate as a Markdown page with a table."""
    versions = ", ".join(f"{name} {version}" for name, version in certificate["versions"].items())
    merging = f", merging {certificate['merging']}" if certificate["merging"] else ""
    trip = certificate["round_trip"]
    written = (
        f" Keys as of MONAI {certificate['written_for_monai']}, compared in the form of the one below."
        if certificate["written_for_monai"]
        else ""
    )
    afterwards = certificate["changed_afterwards"]
    lines = [
        f"# {certificate['file']}: {'passed' if certificate['passed'] else 'FAILED'}",
        "",
        f"Dialect {certificate['dialect']}{merging}; SHA-256 {certificate['sha256']}; image {certificate['image']}.{written}",
        f"{versions}.",
        f"Round trip of {trip['tensors']} tensors: {'every bit the same' if trip['bit_equal'] else 'NOT the same'}.",
        *([f"Compared as it was in the file, before what flags asked for: {'; '.join(afterwards)}."] if afterwards else []),
        "",
        "Largest difference from MONAI of each block's output, absolute and as a share of the largest number:",
        "",
        "| block | float32 | relative | float64 | relative |",
        "|---|---|---|---|---|",
    ]
    for path, found in certificate["blocks"].items():
        cells = [f"{found[dtype][kind]:.1e}" for dtype in TOLERANCE for kind in ("absolute", "relative")]
        lines.append(f"| {path} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _installed() -> str:
    version = importlib.metadata.version("monai")
    found = ".".join(version.split(".")[:2])
    if found not in MONAI:
        raise InputError(f"--certify: MONAI {version} is installed, and {MONAI[0]} to {MONAI[-1]} are known; install monai=={MONAI[-1]}.*")
    return found


def _ours(config: ConfigDict, leaves: Leaves, dialect: Dialect, image: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """The outputs of our modules, by path, and of the whole network."""
    import jax

    from brainseg_jax.core.pytree import paths, unflatten
    from brainseg_jax.models import encoders

    config = config.copy_and_resolve_references()
    config.dtype = dtype
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), unflatten(leaves))
        x = np.asarray(image, dtype)
        encoder = encoders.encoder(config)
        found: dict[str, Any] = {}
        if config.encoder == "vit":
            # nn.scan hides the outputs of its blocks, but the encoder can return them.
            every = encoder.clone(features=tuple(range(config.vit.depth)))
            *blocks, last = jax.jit(lambda p, i: every.apply({"params": p}, i))(params["encoder"], x)
            found |= {f"encoder/blocks/{i}": block for i, block in enumerate(blocks)} | {"encoder/norm": last}
        network = encoders.segmenter(config) if "decoder" in dialect.parts else encoder
        prefix = "" if "decoder" in dialect.parts else "encoder/"
        run = jax.jit(lambda p, i: network.apply({"params": p}, i, capture_intermediates=True, mutable=["intermediates"]))
        out, state = run(params if prefix == "" else params["encoder"], x)
        for path, value in paths(state["intermediates"]).items():
            if path.endswith("/__call__/0"):
                found.setdefault(prefix + path.removesuffix("/__call__/0"), value)
        found[WHOLE] = _joined(out)
        return {path: np.asarray(value) for path, value in found.items()}


def _theirs(config: ConfigDict, leaves: Leaves, dialect: Dialect, image: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """The outputs of MONAI's modules, channels last, by our paths, and of the whole network; the weights are loaded strictly."""
    import monai
    import torch

    config, installed = config.copy_and_resolve_references(), _installed()
    legacy = config.encoder == "swin" and config.swin.merging == "legacy"
    if config.encoder == "swin" and not legacy:
        config, leaves = swin_unetr.for_release(config, leaves, installed)
    name, arguments = dialect.constructor(config, installed)
    if legacy and at_least(installed, "1.5"):
        arguments["downsample"] = _legacy_merging()
    net = getattr(monai.networks.nets, name)(**arguments).eval()
    part = net.get_submodule(dialect.holds.removeprefix("net").removeprefix("."))
    theirs = to_theirs(dialect.rows, leaves, config.channels)
    state = {key: torch.from_numpy(np.array(value)) for key, value in (theirs | synthesise(dialect.dead, theirs, installed)).items()}
    part.load_state_dict(state, strict=True)
    net.to(getattr(torch, dtype))
    found: dict[str, np.ndarray] = {}
    for module_name, module in net.named_modules():
        if at := place(dialect.blocks, module_name):
            path, channels = at

            def keep(_: Any, __: Any, output: Any, path: str = path, channels: str = channels) -> None:
                value = output.detach().numpy()
                found[path] = np.moveaxis(value, 1, -1) if channels == "first" else value

            module.register_forward_hook(keep)
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1))).to(getattr(torch, dtype))
        out = net(x) if part is net else part(x, True)
    maps = [np.moveaxis(m.numpy(), 1, -1) for m in (out if isinstance(out, list | tuple) else [out])]
    return found | {WHOLE: _joined(maps)}


def _joined(out: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part).ravel() for part in (out if isinstance(out, list | tuple) else [out])])


def _legacy_merging() -> type:
    """The patch merging of MONAI 0.9 to 1.4 as a class for `downsample` of later releases."""
    import torch

    from brainseg_jax.models.swin import OCTANTS

    class LegacyMerging(torch.nn.Module):
        def __init__(self, dim: int, norm_layer: Any = torch.nn.LayerNorm, spatial_dims: int = 3):
            super().__init__()
            self.norm = norm_layer(8 * dim)
            self.reduction = torch.nn.Linear(8 * dim, 2 * dim, bias=False)

        def forward(self, x: Any) -> Any:
            octants = [tuple(int(offset) for offset in octant) for octant in OCTANTS["legacy"]]
            return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in octants], -1)))

    return LegacyMerging


def _bit_equal(config: ConfigDict, leaves: Leaves, tensors: Tensors, dialect: Dialect) -> bool:
    """Whether conversion of the file's tensors to our leaves and back, and of our leaves to theirs and back, keeps every bit."""
    written = to_theirs(dialect.rows, leaves, config.channels)
    again, _ = to_ours(dialect.rows, (), written)
    back = all(written[key].astype(tensor.dtype).tobytes() == tensor.tobytes() for key, tensor in tensors.items() if key in written)
    return back and again.keys() == leaves.keys() and all(again[path].tobytes() == leaf.tobytes() for path, leaf in leaves.items())
