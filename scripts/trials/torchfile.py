"""PyTorch's checkpoint files written by hand, opcode by opcode: honest ones to damage, and others that nobody should read."""

import struct
import zipfile
from pathlib import Path

import numpy as np


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """BININT."""
    return b"J" + struct.pack("<i", value)


def tensor(key: str, array: np.ndarray) -> bytes:
    """A float32 tensor in storage `key`, as torch.save describes it."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(array.size) + b"tQ"
    shape = b"(" + b"".join(map(number, array.shape)) + b"t"
    strides = b"(" + b"".join(number(step // array.itemsize) for step in array.strides) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"


def write(file: Path, pickle: bytes, storages: dict[str, bytes], packed: bool = False) -> None:
    """The zip archive around a pickle and its storages."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)


def save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """A state dict of float32 arrays."""
    entries = b"".join(text(name) + tensor(str(i), array) for i, (name, array) in enumerate(arrays.items()))
    storages = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    write(file, b"\x80\x02}(" + entries + b"u.", storages)
