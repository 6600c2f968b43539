"""The networks that come with the package, each with its card (NAME.md)."""

from pathlib import Path

# By the names that may stand for their files. DEFAULT is asked where no other is.
NETWORKS = {name: Path(__file__).with_name(f"{name}.safetensors") for name in ("any", "t1")}
DEFAULT = NETWORKS["any"]


def network_file(name: str | Path) -> str | Path:
    """The file of the package's network of that name; any other checkpoint, and a file or folder that has such a name, is what it says."""
    return NETWORKS[str(name)] if str(name) in NETWORKS and not Path(name).exists() else name
