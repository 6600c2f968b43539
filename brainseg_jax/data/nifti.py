"""The intake gate: a scan or label map enters here or is refused in one line; nibabel decodes the headers (NIfTI-1/2, MGH), while the
stream is read here, to its end, because nibabel stops before the gzip checksum and guesses left and right where a header does not say.
What is written leaves here, too: on a grid that is given, or on that of a scan, to the bit.
"""

import gzip
import io
import math
import zlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped, UInt8
from nibabel import orientations

from brainseg_jax.errors import InputError
from brainseg_jax.files import absent, whole

LIMIT = 2**31  # bytes one volume may take in memory; about 812³ voxels
SPACINGS = (0.1, 20.0)  # mm; outside them the unit is wrong or the header is damaged
# What may follow the voxels: a little padding in NIfTI; tags, the command history and a colour table in MGH.
NIFTI_TAIL, MGH_TAIL = 4096, 2**18


class Scan(NamedTuple):
    """One volume and its place in the world: `affine` takes a voxel index to millimetres towards Right, Anterior, Superior."""

    voxels: Shaped[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]


class _Layout(NamedTuple):
    """What a header claims about the bytes that follow it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    tail: int
    slope: float
    inter: float
    affine: np.ndarray
    header: Any

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read(path: str | Path) -> Scan:
    """An image as float32 [x y z], scaled by the header's slope and intercept; voxels that are not finite (at most half) become 0.

    Raises InputError, naming the file and the remedy, for whatever would be silently wrong later: damage, a header that disagrees with the
    data, an unknown or contradictory left and right, more than one volume, one value only.
    """
    raw, layout = _load(path)
    with np.errstate(invalid="ignore", over="ignore"):
        if (layout.slope, layout.inter) == (1, 0):
            voxels = raw.astype(np.float32, order="C")
        else:
            voxels = (raw.astype(np.float64) * layout.slope + layout.inter).astype(np.float32, order="C")
    try:
        return Scan(_filled(voxels), layout.affine)
    except InputError as refusal:
        raise InputError(f"{path}: {refusal}") from None


def from_array(voxels: Shaped[np.ndarray, "x y z"], affine: Shaped[np.ndarray, "4 4"]) -> Scan:
    """What `read` would give for a file of these. Raises InputError as it does, without naming a file."""
    affine = _sound(affine)
    return Scan(_filled(voxels.astype(np.float32, order="C")), affine)


def read_labels(path: str | Path) -> Scan:
    """A label map as int32 [x y z]; it may be empty. Raises InputError as `read` does, and for values that are not integers.

    The header's slope is applied: ids that a tool squeezed into too small an integer type come back as fractions, and are refused rather
    than rounded.
    """
    raw, layout = _load(path)
    values = raw
    if raw.dtype.kind == "f" or (layout.slope, layout.inter) != (1, 0):
        with np.errstate(invalid="ignore", over="ignore"):
            values = raw.astype(np.float64) * layout.slope + layout.inter
            fractional = ~(np.abs(values - np.rint(values)) <= 1e-3)
        if fractional.any():
            raise InputError(
                f"{path}: label {values[fractional][0]:g} is not an integer; save the labels again as unscaled integers, "
                "resampled by nearest neighbour only"
            )
        values = np.rint(values)
    if values.min() < -(2**31) or values.max() >= 2**31:
        raise InputError(f"{path}: label {max(values.max(), values.min(), key=abs)} is beyond 32 bits; check that this is a label map")
    return Scan(values.astype(np.int32, order="C"), layout.affine)


def write(path: str | Path, voxels: Shaped[np.ndarray, "x y z"], affine: Shaped[np.ndarray, "4 4"]) -> None:
    """Writes NIfTI-1 or MGH, as the suffix says, all of it or nothing; integers keep their type and values, booleans become uint8, floats
    float32.

    NIfTI's s-form holds the affine in float32, the q-form its closest rotation, which leaves out shear; MGH holds directions, spacing and
    centre in float32. Equal input gives equal bytes. Folders are made. Raises InputError for another suffix.
    """
    _write(Path(path), voxels, affine, None)


def write_like(path: str | Path, voxels: Shaped[np.ndarray, "x y z"], scan: str | Path) -> None:
    """The same on the grid of the file `scan`: where both are NIfTI, or both MGH, nibabel reads the same affine from them, to the bit.

    Both forms of NIfTI then are what was read, in the scan's version of the format and with its code. Only where the scan has a q-form
    and no s-form, it is the q-form alone that is copied: no float32 matrix equals a quaternion to the bit.
    """
    layout = _layout(_start(scan))
    if layout.shape != voxels.shape:
        raise InputError(f"{scan}: has another shape than when it was read; let nothing change it, and run again")
    _write(Path(path), voxels, layout.affine, layout.header)


def write_soft(path: str | Path, maps: Iterable[UInt8[np.ndarray, "x y z"]], n: int, scan: str | Path) -> None:
    """Writes `n` maps on the grid of the file `scan` as one 4-D NIfTI, each as it comes: 255 stands for 1, as the header's slope says.

    A byte, because its steps of 0.004 are finer than a probability is known, and float32 takes four times the space and more time.
    """
    path, layout = Path(path), _layout(_start(scan))
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: soft maps are written as .nii or .nii.gz; change the name")
    header = _nifti_header((*layout.shape, n), np.dtype(np.uint8), layout.affine, layout.header)
    header.set_slope_inter(1 / 255, 0)
    _save(path, header, (one.tobytes(order="F") for one in maps))


def orientation(affine: Shaped[np.ndarray, "4 4"]) -> str:
    """Where the three array axes point, each as its closest direction, e.g. "RAS" or "PSR"."""
    return "".join(orientations.aff2axcodes(affine))


def reorient(scan: Scan, codes: str) -> Scan:
    """The same scan with its axes pointing to `codes` (e.g. "RSP"): flips and permutations only, every voxel keeps its value and place.

    Raises InputError unless `codes` names each of R/L, A/P and S/I once.
    """
    if sorted(codes.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise InputError(f"orientation {codes!r}: name each of R/L, A/P and S/I once, e.g. RAS")
    turn = orientations.ornt_transform(orientations.io_orientation(scan.affine), orientations.axcodes2ornt(codes))
    voxels = np.ascontiguousarray(orientations.apply_orientation(scan.voxels, turn))
    return Scan(voxels, scan.affine @ orientations.inv_ornt_aff(turn, scan.voxels.shape))


def _load(path: str | Path) -> tuple[np.ndarray, _Layout]:
    """The stored voxels, in the file's own type, and the header's claims, once all of the file has been read and agrees with them."""
    try:
        with Path(path).open("rb") as file, _plain(file) as stream:
            layout = _layout(stream.read(540))
            stream.seek(0)
            # One byte more than may be there: short of it the stream has ended, and with its end the gzip checksum has been compared.
            content = stream.read(layout.end + layout.tail + 1)
        if len(content) < layout.end:
            raise InputError(f"ends {layout.end - len(content)} bytes short of its {layout.shape} voxels; copy or download it again")
        if len(content) > layout.end + layout.tail:
            raise InputError(f"holds more than the {layout.shape} voxels its header claims; the header is damaged, export the image again")
    except InputError as refusal:
        raise InputError(f"{path}: {refusal}") from None
    except FileNotFoundError:
        raise InputError(absent(Path(path))) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the compressed file is damaged ({error}); copy or download it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions") from None
    raw = np.frombuffer(content, layout.dtype, math.prod(layout.shape), layout.offset)
    return raw.reshape(layout.shape, order="F"), layout


def _plain(file: io.BufferedReader) -> Any:
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


def _start(path: str | Path) -> bytes:
    with Path(path).open("rb") as file, _plain(file) as stream:
        return stream.read(540)


def _layout(head: bytes) -> _Layout:
    """The header at the start of a file, told by its content rather than the file's name, and checked before anything is allocated."""
    for endian, order in (("little", "<"), ("big", ">")):
        if (size := int.from_bytes(head[:4], endian)) in (348, 540):
            layout = _nifti(head, nib.Nifti1Header if size == 348 else nib.Nifti2Header, order)
            break
    else:
        if head[:4] != b"\0\0\0\1":
            raise InputError("is not NIfTI or MGH; convert it to .nii.gz first, e.g. DICOM with dcm2niix")
        layout = _mgh(head)
    if layout.dtype.kind not in "iuf":
        raise InputError(f"holds colours or complex numbers ({layout.dtype}); export one grey value per voxel")
    if max(layout.end, 4 * math.prod(layout.shape)) > LIMIT:
        raise InputError(f"its header claims shape {layout.shape}, over {LIMIT >> 30} GiB; the header is damaged, or crop the image first")
    return layout._replace(shape=_volume(layout.shape))


def _nifti(head: bytes, kind: type, order: str) -> _Layout:
    size = kind.sizeof_hdr
    if len(head) < size:
        raise InputError("is cut off within its header; copy or download it again")
    magic = head[344:348] if size == 348 else head[4:12]
    if magic[:3] in (b"ni1", b"ni2"):
        raise InputError("keeps header and voxels in two files (.hdr, .img); join them into one .nii.gz")
    if magic not in (b"n+1\0", b"n+2\0\r\n\x1a\n"):
        raise InputError("is Analyze 7.5, which does not say where left and right are; convert it to .nii.gz where they are known")
    header = kind(head[:size], endianness=order, check=False)
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the standard reads it
    try:
        shape = tuple(int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1])
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"]) or size + 4
        if not 1 <= header["dim"][0] <= 7 or min(shape) < 1 or offset < size + 4:
            raise ValueError(f"dim {header['dim']}, vox_offset {offset}")
        with np.errstate(invalid="ignore"):
            forms = [form for form, _ in (header.get_sform(coded=True), header.get_qform(coded=True)) if form is not None]
    except (nib.spatialimages.HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise InputError(f"its header is damaged ({error}); export the image again") from None
    if not forms:
        raise InputError("has no q-form and no s-form, so left and right are unknown; set one with fslorient -setsform and -setsformcode")
    forms = [_sound(form) for form in forms]
    if _disagree(forms[0], forms[-1]):
        raise InputError(
            f"s-form ({orientation(forms[0])}) and q-form ({orientation(forms[-1])}) disagree on directions; find the right one "
            "and copy it over the other with fslorient -copysform2qform or -copyqform2sform"
        )
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        slope, inter = 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise InputError(f"scl_slope {slope} and scl_inter {inter} give no intensities; export the image again")
    # Padding is shorter than any slice, so a dimension that is one too small does not pass for it.
    tail = min(NIFTI_TAIL, math.prod(shape) * dtype.itemsize // (max(shape) + 1))
    return _Layout(shape, dtype, offset, tail, slope, inter, forms[0], header)


def _mgh(head: bytes) -> _Layout:
    if len(head) < 90:
        raise InputError("is cut off within its header; copy or download it again")
    header = nib.freesurfer.mghformat.MGHHeader(head[:90], check=False)
    shape = tuple(int(n) for n in header["dims"])
    if min(shape) < 1 or header["type"] not in (0, 1, 3, 4, 10):
        raise InputError(f"its header is damaged (shape {shape}, type {header['type']}); export the image again")
    # nibabel fills in an orientation where the file has none, so the flag is taken from the bytes.
    if int.from_bytes(head[28:30], "big") != 1:
        raise InputError("says no orientation (goodRASFlag), so left and right are unknown; set it with mri_convert --in_orientation")
    affine = _sound(header.get_affine())
    return _Layout(shape, header.get_data_dtype().newbyteorder(">"), header.get_data_offset(), MGH_TAIL, 1.0, 0.0, affine, header)


def _volume(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise InputError(f"shape {shape} is a series of volumes; split it, e.g. with fslsplit, and give one volume")
    if len(shape) < 3 or min(shape) < 2:
        raise InputError(f"shape {shape} is not a volume; join the slices into one 3-D image")
    return shape


def _filled(voxels: np.ndarray) -> np.ndarray:
    """The same array, with 0 for what is not finite."""
    finite = np.isfinite(voxels)
    if 2 * np.count_nonzero(finite) < finite.size:
        raise InputError("most voxels are NaN or infinite; export the image again, with 0 as background")
    low, high = voxels[finite].min(), voxels[finite].max()
    if low == high:
        raise InputError(f"the image is empty, every voxel is {low:g}; export it again or leave it out")
    voxels[~finite] = 0
    return voxels


def _sound(affine: np.ndarray) -> np.ndarray:
    affine = affine.astype(np.float64)
    if not np.isfinite(affine).all():
        raise InputError("its affine is not finite; set the orientation again or export the image again")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * spacing.prod():
        raise InputError("its affine is singular, two axes run along one line; set the orientation again or export the image again")
    if spacing.min() < SPACINGS[0] or spacing.max() > SPACINGS[1]:
        sizes = " × ".join(f"{s:.4g}" for s in spacing)
        raise InputError(f"voxels of {sizes} mm are outside {SPACINGS[0]:g} to {SPACINGS[1]:g}; set the voxel size in the header right")
    return affine


def _disagree(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two affines differ in handedness, or point an axis over 45° apart: more than a registration to a template turns a head."""
    a, b = a[:3, :3], b[:3, :3]
    cosines = (a * b).sum(axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    return bool(np.linalg.det(a) * np.linalg.det(b) < 0 or cosines.min() < np.sqrt(0.5))


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
    """A header that places the voxels by an affine, as the header `like`, if it is NIfTI, has it."""
    like = like if isinstance(like, nib.Nifti1Header) else None
    header = (nib.Nifti1Header if like is None else type(like))(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    if like is not None and not like["sform_code"]:
        header["pixdim"][:4] = like["pixdim"][:4]
        for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "qform_code"):
            header[name] = like[name]
    else:
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
        if like is not None:
            header["qform_code"] = header["sform_code"] = like["sform_code"]
    header.set_slope_inter(1, 0)
    header.set_xyzt_units("mm")
    header["vox_offset"] = header.sizeof_hdr + 4
    return header


def _mgh_header(path: Path, shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, like: Any) -> Any:
    """The same for MGH, whose fields for the place are copied if `like` is MGH."""
    if isinstance(like, nib.freesurfer.mghformat.MGHHeader):
        header = like.copy()
    else:
        header = nib.MGHImage(np.broadcast_to(np.uint8(0), shape), affine).header
    if dtype not in (np.uint8, np.int16, np.int32, np.float32):
        raise InputError(f"{path}: MGH does not hold {dtype}; write it as .nii.gz")
    header.set_data_dtype(dtype)
    return header


def _save(path: Path, header: Any, voxels: Iterable[bytes]) -> None:
    """Writes header and voxels, compressed where the name says so, all or nothing."""
    block = header.binaryblock
    # MGH's binary block is its header and what follows the voxels; NIfTI's is followed by four bytes that say that nothing is added.
    head, tail = (block[:90] + bytes(284 - 90), block[90:]) if path.suffix in (".mgz", ".mgh") else (block + bytes(4), b"")
    packed = path.suffix in (".gz", ".mgz")
    with whole(path) as part, part.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) if packed else file as stream:
        for chunk in chain([head], voxels, [tail]):
            stream.write(chunk)
