"""Writing of label maps and images as NIfTI or MGH, on a given grid or exactly on that of a scan.

nibabel makes the headers. The bytes are written here, because soft maps are written one by one, and nibabel takes them all at once.
"""

import gzip
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Shaped, UInt8

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import atomic_write
from brainseg_jax.data.nifti import MGH, claims, is_square

PLACE = ("qform_code", "sform_code", *(f"quatern_{k}" for k in "bcd"), *(f"{form}_{k}" for form in ("qoffset", "srow") for k in "xyz"))


def write(path: str | Path, voxels: Shaped[np.ndarray, "x y z"], affine: Shaped[np.ndarray, "4 4"]) -> None:
    """Writes NIfTI-1 or MGH, by the suffix, atomically; integers keep their type, booleans become uint8, floats float32.

    NIfTI's s-form holds the affine in float32, the q-form the closest rotation, without shear; MGH holds directions, spacing and centre in
    float32. Equal input gives equal bytes. Folders are created. Raises InputError for another suffix.
    """
    _write(Path(path), voxels, affine, None)


def write_like(path: str | Path, voxels: Shaped[np.ndarray, "x y z"], scan: str | Path) -> None:
    """Writes voxels as `write` does, on the grid of the file `scan`; if both are NIfTI, or both MGH, their affines are identical.

    Both forms of NIfTI, their codes and unit are copied, in the scan's version of the format, so that the voxels lie on the scan whichever
    form a tool uses.
    """
    layout = claims(scan)
    if layout.shape != voxels.shape:
        raise InputError(f"{scan}: has another shape than when it was read; let nothing change it, and run again")
    _write(Path(path), voxels, layout.affine, layout.header)


def write_soft(path: str | Path, maps: Iterable[UInt8[np.ndarray, "x y z"]], n: int, scan: str | Path) -> None:
    """Writes `n` probability maps on the grid of the file `scan` as one 4-D NIfTI, one after the other; 255 is 1 by the header's slope.

    Bytes, because steps of 0.004 are finer than the accuracy of a probability, and float32 takes four times the space and more time.
    """
    path, layout = Path(path), claims(scan)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: soft maps are written as .nii or .nii.gz; change the name")
    header = _nifti_header((*layout.shape, n), np.dtype(np.uint8), layout.affine, layout.header)
    header.set_slope_inter(1 / 255, 0)
    _save(path, header, (one.tobytes(order="F") for one in maps))


def _write(path: Path, voxels: Shaped[np.ndarray, "x y z"], affine: np.ndarray, like: Any) -> None:
    dtype = {"b": np.dtype(np.uint8), "f": np.dtype(np.float32)}.get(voxels.dtype.kind, voxels.dtype)
    if path.name.endswith((".nii", ".nii.gz")):
        header = _nifti_header(voxels.shape, dtype, affine, like)
    elif path.suffix in (".mgz", ".mgh"):
        header = _mgh_header(path, voxels.shape, dtype, affine, like)
    else:
        raise InputError(f"{path}: images are written as .nii, .nii.gz, .mgz or .mgh; change the name")
    _save(path, header, [voxels.astype(dtype.newbyteorder(header.endianness)).tobytes(order="F")])


def _nifti_header(shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, like: Any) -> Any:
    """A NIfTI header with the affine or, if `like` is a NIfTI header, with its q-form, s-form and unit."""
    like = like if isinstance(like, nib.Nifti1Header) else None
    header = (nib.Nifti1Header if like is None else type(like))(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    if like is None:
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
    else:
        header["pixdim"][:4] = like["pixdim"][:4]
        for name in PLACE:
            header[name] = like[name]
        header["xyzt_units"] = int(like["xyzt_units"]) & 7 or header["xyzt_units"]
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.sizeof_hdr + 4
    return header


def _mgh_header(path: Path, shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, like: Any) -> Any:
    """An MGH header with the affine or, if `like` is an MGH header of the same shape, a copy of it."""
    if isinstance(like, MGH) and tuple(like["dims"][:3].tolist()) == shape[:3]:
        header = like.copy()
    else:
        header = nib.MGHImage(np.broadcast_to(np.uint8(0), shape), affine).header
    if dtype not in (np.uint8, np.int16, np.int32, np.float32):
        raise InputError(f"{path}: MGH does not hold {dtype}; write it as .nii.gz")
    if not is_square(header):
        raise InputError(f"{path}: MGH does not hold axes that are not at right angles; write it as .nii.gz")
    header.set_data_dtype(dtype)
    return header


def _save(path: Path, header: Any, voxels: Iterable[bytes]) -> None:
    """Writes header and voxels, compressed if the name says so, atomically."""
    block = header.binaryblock
    # MGH's binary block is its header and the footer behind the voxels; NIfTI's is followed by four bytes for no extensions.
    head, tail = (block[:90] + bytes(284 - 90), block[90:]) if path.suffix in (".mgz", ".mgh") else (block + bytes(4), b"")
    compress = path.suffix in (".gz", ".mgz")
    with atomic_write(path) as part, part.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) if compress else file as stream:
        for chunk in chain([head], voxels, [tail]):
            stream.write(chunk)
