"""The pretrained networks of the package, each with its card (NAME.md)."""

from pathlib import Path

# Files by name; DEFAULT is used if none is named.
NETWORKS = {name: Path(__file__).with_name(f"{name}.safetensors") for name in ("any", "t1")}
DEFAULT = NETWORKS["any"]


def network_file(name: str | Path) -> str | Path:
    """The file of the package's network `name`; `name` itself if it is an existing path or no network of the package."""
    return NETWORKS[str(name)] if str(name) in NETWORKS and not Path(name).exists() else name
