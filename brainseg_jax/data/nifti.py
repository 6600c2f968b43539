"""Reading and validation of scans and label maps. nibabel decodes the headers (NIfTI-1/2, MGH); the stream is read here, to its end,
because nibabel stops before the gzip checksum, and guesses left and right if a header does not define them.
"""

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped
from nibabel import orientations

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import open_regular
from brainseg_jax.data import affine_checks
from brainseg_jax.data.affine_checks import Form, sound
from brainseg_jax.data.intensities import cleaned

LIMIT = 2**31  # maximum bytes of a volume in memory; about 812³ voxels
SLAB = 2**24  # bytes read at once
FAR = 2**26  # maximum bytes from the start of a file to its voxels: NIfTI extensions hold text, or the header of a DICOM file
# Maximum bytes behind the voxels: a little padding in NIfTI; tags, the command history and a colour table in MGH.
NIFTI_TAIL, MGH_TAIL = 4096, 2**18
CODES = range(6)  # of q-form and s-form: the space they lead to
UNITS = {1: 1000.0, 3: 0.001}  # mm in NIfTI's metre and micron; all others are read as mm
QUATERNION = -1e-5  # nibabel's own bound refuses published scans whose q-forms were rounded in single precision
SKEW = 2e-3  # tolerance of MGH's directions, as a cosine or a deviation from unit length
# Tags of MGH with a reliable length, and tags without: an old transform, a frame, a colour table.
MEASURED, UNMEASURED = {3, 4, 5, 10, 21, 31, 32, 33, 40, 41, 43, 44}, {1, 2, 20, 30, 42}
# Compression ratio and size of an empty image: a brain in a large image of zeros compresses a hundredfold, only zeros 230 to 1,000 times.
EMPTY, LARGE = 200, 2**28


class Scan(NamedTuple):
    """A volume and its affine, from voxel indices to millimetres towards Right, Anterior, Superior.

    `remarks`: warnings about reading the file, a sentence each, without the file's name.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    remarks: tuple[str, ...] = ()


class Layout(NamedTuple):
    """A header's description of the bytes that follow it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    header: Any
    affine: np.ndarray = np.eye(4)
    remarks: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def slice(self) -> int:
        """A lower bound of the bytes of a slice, so that an extra slice is not taken for a tail."""
        return self.size // (max(self.shape) + 1)

    def scaled(self, stored: np.ndarray) -> np.ndarray:
        """Stored values scaled by the header's slope and intercept; unchanged, in their own type, for 1 and 0."""
        return stored if (self.slope, self.inter) == (1, 0) else stored.astype(np.float64) * self.slope + self.inter


def read(path: str | Path) -> Scan:
    """An image as float32 [x y z], scaled by the header's slope and intercept, and cleaned (see `intensities.cleaned`).

    Raises InputError, naming the file and the remedy, for a damaged file, a header that contradicts the data or itself, unknown or
    contradictory left and right, more than one volume, and a constant image.
    """
    with _opened(path) as (stream, layout, packed):
        if packed and layout.size > max(LARGE, EMPTY * packed):
            raise InputError(f"{packed} bytes that claim to hold {layout.size} are of an empty image; export it again or leave it out")
        voxels, remarks = cleaned(_volume(stream, layout, np.float32, layout.scaled))
    return Scan(voxels, layout.affine, layout.remarks + remarks)


def from_array(voxels: Shaped[np.ndarray, "x y z"], affine: Shaped[np.ndarray, "4 4"]) -> Scan:
    """The scan that `read` returns for a file of these voxels and affine. Raises InputError as it does, without naming a file."""
    affine = sound(affine, voxels.shape)
    voxels, remarks = cleaned(voxels.astype(np.float32, order="C"))
    return Scan(voxels, affine, remarks)


def from_image(image: Any) -> Scan:
    """The scan that `read` returns for the saved file of a nibabel image. Raises InputError as `from_array` does."""
    voxels = np.asanyarray(image.dataobj)
    if voxels.dtype.kind not in "biuf":
        raise InputError(f"holds colours or complex numbers ({voxels.dtype}); give one grey value per voxel")
    voxels = voxels.reshape(_single(voxels.shape))
    if not isinstance(image, nib.Nifti1Pair):
        return from_array(voxels, image.affine)
    header = type(image)(image.dataobj, image.affine, image.header).header  # with its forms as they would be saved
    affine, remarks = _nifti_place(header, voxels.shape)
    voxels, more = cleaned(voxels.astype(np.float32, order="C"))
    return Scan(voxels, affine, remarks + more)


def read_labels(path: str | Path) -> Scan:
    """A label map as int32 [x y z], possibly empty. Raises InputError as `read` does, and for values that are not integers.

    The header's slope is applied: ids that a tool rescaled into too small an integer type are fractions then, and refused, not rounded.
    """
    with _opened(path) as (stream, layout, _):
        voxels = _volume(stream, layout, np.int32, lambda stored: _ids(layout.scaled(stored)))
    return Scan(voxels, layout.affine, layout.remarks)


def _ids(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        fractional = ~(np.abs(values - np.rint(values)) <= 1e-3)
        if fractional.any():
            raise InputError(
                f"label {values[fractional][0]:g} is not an integer; save the labels again as unscaled integers, "
                "resampled by nearest neighbour only"
            )
        values = np.rint(values)
    if values.min() < -(2**31) or values.max() >= 2**31:
        raise InputError(f"label {max(values.max(), values.min(), key=abs)} is beyond 32 bits; check that this is a label map")
    return values


def orientation(affine: Shaped[np.ndarray, "4 4"]) -> str:
    """The closest directions of the three array axes, e.g. "RAS" or "PSR"."""
    return "".join(orientations.aff2axcodes(affine))


def reorient(scan: Scan, codes: str) -> Scan:
    """The scan with its axes pointing to `codes` (e.g. "RSP"), by flips and permutations; every voxel keeps its value and position.

    Raises InputError unless `codes` names each of R/L, A/P and S/I once.
    """
    if sorted(codes.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise InputError(f"orientation {codes!r}: name each of R/L, A/P and S/I once, e.g. RAS")
    turn = orientations.ornt_transform(orientations.io_orientation(scan.affine), orientations.axcodes2ornt(codes))
    voxels = np.ascontiguousarray(orientations.apply_orientation(scan.voxels, turn))
    return Scan(voxels, scan.affine @ orientations.inv_ornt_aff(turn, scan.voxels.shape), scan.remarks)


def claims(path: str | Path) -> Layout:
    """The layout and affine from a file's header, validated as by `read`. Raises InputError as it does."""
    with _opened(path) as (_, layout, _):
        return layout


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Layout, int]]:
    """A decompressed stream at the first voxel, the layout from the header, and the file's size if it is compressed, else 0.

    Raises InputError in one line that names the file for any error while it is read.
    """
    with open_regular(Path(path), "give a scan") as file:
        try:
            with _plain(file) as stream:
                layout = _layout(stream.read(540))
                stream.seek(layout.offset)
                yield stream, layout, 0 if stream is file else os.fstat(file.fileno()).st_size
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"the compressed file is damaged ({error}); copy or download it again") from None
        except (ValueError, ArithmeticError, LookupError, RuntimeError, struct.error) as error:
            raise InputError(f"is damaged ({' '.join(str(error).split())}); copy it or export the image again") from None


def _plain(file: io.BufferedReader) -> Any:
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


def _volume(stream: Any, layout: Layout, dtype: type, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The voxels, converted slab by slab so that they are in memory only once. Raises InputError for a stream that is too short or long."""
    voxels, (x, y, z) = np.empty(layout.shape, dtype), layout.shape
    plane = x * y * layout.dtype.itemsize
    thick = max(1, SLAB // plane)
    for first in range(0, z, thick):
        wanted = plane * min(thick, z - first)
        content = stream.read(wanted)
        if len(content) < wanted:
            raise InputError(
                f"ends {plane * (z - first) - len(content)} bytes short of its {layout.shape} voxels; copy or download it again"
            )
        stored = np.frombuffer(content, layout.dtype).reshape((x, y, -1), order="F")
        with np.errstate(invalid="ignore", over="ignore"):
            voxels[:, :, first : first + thick] = convert(stored)
    # A byte more than allowed, so that the stream is read to its end, where the gzip checksum is compared.
    tail = stream.read(MGH_TAIL + 1)
    short = len(tail) <= min(layout.slice, NIFTI_TAIL)
    if not short and not (isinstance(layout.header, MGH) and _tags(tail)):
        raise InputError(f"holds more than the {layout.shape} voxels its header claims; the header is damaged, export the image again")
    return voxels


def _layout(head: bytes) -> Layout:
    """The layout from the header at the start of a file, recognised by its content, and validated before anything is allocated."""
    if head.startswith(b"version https://git-lfs") or b"/annex/objects/" in head[:300]:
        raise InputError("its content was not fetched (git-annex or LFS), it is a pointer; get it, with datalad get or git lfs pull")
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
    if max(layout.offset + layout.size, 4 * math.prod(layout.shape)) > LIMIT:
        raise InputError(f"its header claims shape {layout.shape}, over {LIMIT >> 30} GiB; the header is damaged, or crop the image first")
    layout = layout._replace(shape=_single(layout.shape))
    place = _mgh_place if isinstance(layout.header, MGH) else _nifti_place
    affine, remarks = place(layout.header, layout.shape)
    return layout._replace(affine=affine, remarks=remarks)


def _nifti(head: bytes, kind: type, order: str) -> Layout:
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
        header["pixdim"][0] = 1  # by the standard
    try:
        dim = header["dim"].tolist()
        shape = tuple(dim[1 : dim[0] + 1])
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"]) or size + 4
        if not 1 <= dim[0] <= 7 or min(shape) < 1 or not size + 4 <= offset <= FAR:
            raise ValueError(f"dim {dim}, vox_offset {offset}")
    except (nib.spatialimages.HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise InputError(f"its header is damaged ({error}); export the image again") from None
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        slope, inter = 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise InputError(f"scl_slope {slope} and scl_inter {inter} give no intensities; export the image again")
    return Layout(shape, dtype, offset, slope, inter, header)


def _nifti_place(header: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine of a NIfTI volume in mm, whatever the header's unit, and remarks."""
    header.quaternion_threshold = QUATERNION
    millimetres = np.array([[_unit(header)]] * 3 + [[1.0]])
    try:
        with np.errstate(invalid="ignore"):
            coded = [(millimetres * form, code) for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
    except (nib.spatialimages.HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"its header is damaged ({error}); export the image again") from None
    for name in ("sform_code", "qform_code"):
        if (code := int(header[name])) not in CODES:
            raise InputError(f"its {name} is {code}, where NIfTI has 0 to {CODES[-1]}; the header is damaged, export the image again")
    forms = [Form(sound(form, shape), code) for form, code in coded]
    if not forms:
        raise InputError("has no q-form and no s-form, so left and right are unknown; set one with fslorient -setsform and -setsformcode")
    if affine_checks.opposed(forms[0].affine, forms[-1].affine):
        names = [orientation(form.affine) for form in forms]
        raise InputError(
            f"s-form ({names[0]}) and q-form ({names[1]}) disagree on directions; find the right one "
            "and copy it over the other with fslorient -copysform2qform or -copyqform2sform"
        )
    if len(forms) == 2:
        return affine_checks.settled(*forms, shape)
    if not header["sform_code"]:
        return forms[0].affine, affine_checks.unused(millimetres * header.get_sform(), forms[0], shape)
    pixdim = np.abs(header["pixdim"][1:4].astype(np.float64)) * _unit(header)
    affine_checks.same_size(forms[0].affine, np.where(pixdim > 0, pixdim, affine_checks.size(forms[0].affine)), "pixdim")
    return forms[0].affine, ()


def _unit(header: Any) -> float:
    return UNITS.get(int(header["xyzt_units"]) & 7, 1.0)


MGH = nib.freesurfer.mghformat.MGHHeader


def _mgh(head: bytes) -> Layout:
    if len(head) < 90:
        raise InputError("is cut off within its header; copy or download it again")
    header = MGH(head[:90], check=False)
    shape = tuple(header["dims"].tolist())
    if min(shape) < 1 or header["type"] not in (0, 1, 3, 4, 10):
        raise InputError(f"its header is damaged (shape {shape}, type {header['type']}); export the image again")
    # Without an orientation in the file nibabel fills one in, so the flag is read from the bytes.
    if int.from_bytes(head[28:30], "big") != 1:
        raise InputError("says no orientation (goodRASFlag), so left and right are unknown; set it with mri_convert --in_orientation")
    return Layout(shape, header.get_data_dtype().newbyteorder(">"), header.get_data_offset(), 1.0, 0.0, header)


def _mgh_place(header: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine of an MGH volume, without remarks. Raises InputError unless its directions are orthonormal and its sizes positive."""
    if not is_square(header) or not header["delta"].min() > 0:
        raise InputError("its directions are no unit vectors at right angles, or its voxels have no size; export the image again")
    with np.errstate(all="ignore"):
        affine = header.get_affine()
    return sound(affine, shape), ()


def is_square(header: Any) -> bool:
    """Whether the directions of an MGH header are orthonormal."""
    directions = header["Mdc"].astype(np.float64)
    with np.errstate(all="ignore"):
        return bool(np.abs(directions @ directions.T - np.eye(3)).max() < SKEW)


def _tags(tail: bytes) -> bool:
    """Whether bytes are FreeSurfer's footer: five numbers of the sequence, and then tags, each with its length."""
    at = 20
    while at + 12 <= len(tail) <= MGH_TAIL:
        tag, length = struct.unpack_from(">iq", tail, at)
        if tag in UNMEASURED:
            return True
        if tag not in MEASURED or length < 1:
            return False
        at += 12 + length
    return at == len(tail) <= MGH_TAIL


def _single(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The three dimensions of a volume, without trailing and leading dimensions of one, as machine learning tools write them."""
    spatial = shape
    while len(spatial) > 3 and 1 in (spatial[0], spatial[-1]):
        spatial = spatial[:-1] if spatial[-1] == 1 else spatial[1:]
    if len(spatial) > 3:
        raise InputError(f"shape {shape} is a series of volumes; split it, e.g. with fslsplit, and give one volume")
    if len(spatial) < 3 or min(spatial) < 2:
        raise InputError(f"shape {shape} is not a volume; join the slices into one 3-D image")
    return spatial
