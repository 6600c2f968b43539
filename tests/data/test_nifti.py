"""The intake gate: what it must refuse, one file each, made by hand; and what it must hand on without a change."""

import gzip
import os
import struct
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import nifti, nifti_write
from brainseg_jax.data.affine_checks import farthest

PSR = np.array([[0, 0, 2, -74.5], [-2, 0, 0, 116.25], [0, 2, 0, -136], [0, 0, 0, 1.0]])
OBLIQUE = np.array([[0.9, 0.1, 0.05, -70], [-0.1, 1.1, 0.2, -90.5], [0.02, -0.2, 1.3, -60], [0, 0, 0, 1.0]])
SHEARED = np.array([[0.97, 0.2, -0.11], [-0.21, 0.97, -0.02], [0.09, 0.1, 0.99]])
Q, R = np.linalg.qr(SHEARED)
LINES = {"straight": np.eye(3), "oblique": Q * np.sign(np.diag(R)), "sheared": SHEARED}
TILTED = np.vstack([np.hstack([LINES["oblique"] * (0.9, 1.1, 1.3), [[-70], [-90.5], [-60]]]), [0, 0, 0, 1]])
DATA = np.random.default_rng(0).integers(0, 200, (6, 7, 8)).astype(np.int16)


def make(path, data=DATA, affine=PSR, kind=nib.Nifti1Image, **fields):
    """A NIfTI file with both forms set, whose header fields are then overwritten as they are given."""
    image = kind(data, affine, dtype=data.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    content = image.to_bytes()
    size = kind.header_class.sizeof_hdr
    header = kind.header_class(content[:size], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[size:]
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def make_mgh(path, data=DATA, affine=PSR, patch=()):
    """An MGH file, some of whose bytes are then overwritten: (offset, struct format, value)."""
    content = bytearray(nib.MGHImage(data.astype(np.float32), affine).to_bytes())
    for offset, form, value in patch:
        struct.pack_into(form, content, offset, value)
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".mgz" else bytes(content))
    return path


def with_value(value, share):
    data = DATA.astype(np.float32)
    data.reshape(-1)[: int(share * data.size)] = value
    return data


def cut(path, at):
    path.write_bytes(path.read_bytes()[:at])
    return path


def padded(path, n):
    path.write_bytes(path.read_bytes() + b"\1" * n)
    return path


def link(path, target):
    path.symlink_to(target)
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def text(path, content):
    path.write_bytes(content)
    return path


def dims(*sizes):
    return np.array([len(sizes), *sizes] + [1] * (7 - len(sizes)))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
REFUSED = {
    "missing": (lambda d: d / "a.nii.gz", "no such file"),
    "folder": (lambda d: d, "is a folder"),
    "empty file": (lambda d: text(d / "a.nii", b""), "not NIfTI or MGH"),
    "text": (lambda d: text(d / "a.nii.gz", b"subject,image\n" * 50), "not NIfTI or MGH"),
    "DICOM": (lambda d: text(d / "a.nii", bytes(128) + b"DICM" + bytes(500)), "dcm2niix"),
    "cut header": (lambda d: cut(make(d / "a.nii"), 200), "cut off"),
    "cut gzip": (lambda d: cut(make(d / "a.nii.gz"), -20), "damaged"),
    "cut voxels": (lambda d: cut(make(d / "a.nii"), -1), "1 bytes short"),
    "garbage after gzip": (lambda d: padded(make(d / "a.nii.gz"), 9), "damaged"),
    "halved dim": (lambda d: make(d / "a.nii.gz", dim=dims(6, 7, 4)), "holds more"),
    "a slice less": (lambda d: make(d / "a.nii", np.tile(DATA, (4, 4, 4)), dim=dims(24, 28, 31)), "holds more"),
    "doubled dim": (lambda d: make(d / "a.nii.gz", dim=dims(6, 7, 16)), "672 bytes short"),
    "32 GiB": (lambda d: make(d / "a.nii.gz", dim=dims(2048, 2048, 4096)), "over 2 GiB"),
    "becomes over 2 GiB": (lambda d: make(d / "a.nii.gz", DATA.astype(np.uint8), dim=dims(1024, 1024, 1024)), "over 2 GiB"),
    "negative dim": (lambda d: make(d / "a.nii", dim=dims(6, -7, 8)), "header is damaged"),
    "no dims": (lambda d: make(d / "a.nii", dim=np.zeros(8)), "header is damaged"),
    "unknown type": (lambda d: make(d / "a.nii", datatype=5), "header is damaged"),
    "offset NaN": (lambda d: make(d / "a.nii", vox_offset=np.nan), "header is damaged"),
    "offset in header": (lambda d: make(d / "a.nii", vox_offset=100), "header is damaged"),
    "offset far away": (lambda d: make(d / "a.nii", vox_offset=1e9), "header is damaged"),
    "volumes of one slice": (lambda d: make(d / "a.nii.gz", DATA[:, :, None]), "split it"),
    "series": (lambda d: make(d / "a.nii.gz", np.stack([DATA, DATA], -1)), "split it"),
    "vectors": (lambda d: make(d / "a.nii.gz", np.stack([DATA, DATA], -1)[..., None, :]), "split it"),
    "one slice": (lambda d: make(d / "a.nii", DATA[:, :, 0]), "not a volume"),
    "one slice in 3-D": (lambda d: make(d / "a.nii", DATA[:, :, :1]), "not a volume"),
    "RGB": (lambda d: make(d / "a.nii", np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "colours or complex"),
    "complex": (lambda d: make(d / "a.nii", DATA.astype(np.complex64)), "colours or complex"),
    "Analyze": (lambda d: make(d / "a.nii", magic=b"\0\0\0\0"), "Analyze 7.5"),
    "pair": (lambda d: make(d / "a.hdr", magic=b"ni1\0"), "two files"),
    "no orientation": (lambda d: make(d / "a.nii.gz", qform_code=0, sform_code=0), "no q-form and no s-form"),
    "mirrored forms": (lambda d: make(d / "a.nii.gz", srow_x=[0, 0, -2, 74.5]), r"s-form \(PSL\) and q-form \(PSR\) disagree"),
    "rotated forms": (lambda d: make(d / "a.nii", srow_x=[-2, 0, 0, 1], srow_y=[0, 0, -2, 1]), "disagree"),
    "singular": (lambda d: make(d / "a.nii.gz", qform_code=0, srow_y=[0, 0, 2, 0]), "singular"),
    "empty s-form": (lambda d: make(d / "a.nii.gz", srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4), "singular"),
    "affine NaN": (lambda d: make(d / "a.nii.gz", qform_code=0, srow_y=[np.nan, 0, 0, 0]), "affine is not finite"),
    "affine inf": (lambda d: make(d / "a.nii.gz", qoffset_x=np.inf), "affine is not finite"),
    "metres": (lambda d: make(d / "a.nii.gz", affine=np.diag([1e-3, 1e-3, 1e-3, 1])), "0.001 × 0.001 × 0.001 mm"),
    "thick slices": (lambda d: make(d / "a.nii.gz", affine=np.diag([1, 1, 25, 1.0])), "1 × 1 × 25 mm"),
    "negative pixdim": (lambda d: make(d / "a.nii", pixdim=[1, -2, 2, 2, 0, 0, 0, 0]), "header is damaged"),
    "longer than a head": (lambda d: make(d / "a.nii", np.zeros((2, 2, 36), np.uint8), np.diag([1, 1, 20, 1.0])), "720 mm long"),
    "s-form of another size": (lambda d: make(d / "a.nii.gz", srow_x=[0, 0, 0.5, 0]), r"s-form \(2 × 2 × 0.5 mm\) and q-form \(2 × 2 × 2"),
    "pixdim of another size": (
        lambda d: make(d / "a.nii", pixdim=[-1, 2, 15, 2, 0, 0, 0, 0]),
        r"q-form \(2 × 15 × 2 mm\) disagree on the vo",
    ),
    "pixdim beside a lone s-form": (lambda d: make(d / "a.nii", qform_code=0, pixdim=[1, 2, 2, 2.1, 0, 0, 0, 0]), r"pixdim \(2 × 2 × 2.1"),
    "a code that NIfTI has not": (lambda d: make(d / "a.nii", qform_code=4097), "its qform_code is 4097, where NIfTI has 0 to 5"),
    "2 % smaller": (lambda d: make(d / "a.nii", srow_y=[-1.96, 0, 0, 116.25]), "disagree on the voxel size"),
    "s-form elsewhere": (lambda d: make(d / "a.nii", srow_x=[0, 0, 2, -84.5]), "apart; find the right one"),
    "s-form turned": (lambda d: make(d / "a.nii", srow_x=[0, 0.28, 2, -74.5]), "apart; find the right one"),
    "s-form far away": (lambda d: make(d / "a.nii", srow_x=[0, 0, 2, 5000]), "5.01 m from the origin"),
    "s-form beyond all": (lambda d: make(d / "a.nii", srow_x=[0, 0, 2, 1e33]), "header is damaged"),
    "stretched beyond a template": (lambda d: make(d / "a.nii", sform_code=4, srow_x=[0, 0, 8, 0]), "disagree on the voxel size"),
    "stretched beside another scan's": (lambda d: make(d / "a.nii", sform_code=4, qform_code=2, srow_x=[0, 0, 3, 0]), "disagree on the vo"),
    "pointer of LFS": (
        lambda d: text(d / "a.nii.gz", LFS),
        "not fetched .*git lfs pull",
    ),
    "pointer of git-annex": (lambda d: text(d / "a.mgz", b"/annex/objects/MD5E-s1--0123.mgz\n"), "not fetched .*datalad get"),
    "link to what is not there": (
        lambda d: link(d / "a.nii.gz", ".git/annex/objects/aa/bb/MD5E.nii.gz"),
        "not fetched.* datalad get",
    ),
    "pipe": (lambda d: pipe(d / "a.nii.gz"), "pipe or device"),
    "device": (lambda d: Path("/dev/zero"), "pipe or device"),
    "NUL in the path": (lambda d: d / "a\0.nii.gz", "NUL"),
    "slope inf": (lambda d: make(d / "a.nii.gz", scl_slope=np.inf), "scl_slope inf"),
    "intercept NaN": (lambda d: make(d / "a.nii.gz", scl_slope=2, scl_inter=np.nan), "scl_inter nan"),
    "MGH without orientation": (lambda d: make_mgh(d / "a.mgz", patch=[(28, ">h", 0)]), "goodRASFlag"),
    "MGH of unknown type": (lambda d: make_mgh(d / "a.mgh", patch=[(20, ">i", 7)]), "header is damaged"),
    "MGH cut": (lambda d: cut(make_mgh(d / "a.mgh"), 284 + 100), "short"),
    "MGH of no unit vectors": (lambda d: make_mgh(d / "a.mgz", patch=[(46, ">f", -1.1)]), "no unit vectors"),
    "MGH of oblique axes": (lambda d: make_mgh(d / "a.mgz", patch=[(42, ">f", 0.03)]), "right angles"),
    "MGH of negative size": (lambda d: make_mgh(d / "a.mgz", patch=[(30, ">f", -2)]), "have no size"),
    "MGH far away": (lambda d: make_mgh(d / "a.mgz", patch=[(78, ">f", 1e30)]), "header is damaged"),
    "MGH series": (lambda d: make_mgh(d / "a.mgz", np.stack([DATA, DATA], -1)), "split it"),
}
IMAGE_ONLY = {
    "all zero": (np.zeros_like(DATA), "every voxel is 0"),
    "constant": (np.full_like(DATA, 7), "every voxel is 7"),
    "all NaN": (with_value(np.nan, 1), "most voxels are NaN"),
    "mostly NaN": (with_value(np.nan, 0.99), "most voxels are NaN"),
    "mostly infinite": (with_value(-np.inf, 0.99), "most voxels are NaN"),
    "too large for float32": (DATA.astype(np.float64) * 1e300, "most voxels are NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_in_one_line(tmp_path, name):
    build, reason = REFUSED[name]
    path = build(tmp_path)
    for reader in (nifti.read, nifti.read_labels):
        with pytest.raises(InputError, match=reason) as refusal:
            reader(path)
        assert str(refusal.value).startswith(f"{path}: ")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", IMAGE_ONLY)
def test_images_without_content_are_refused(tmp_path, name):
    data, reason = IMAGE_ONLY[name]
    with pytest.raises(InputError, match=rf"a\.nii\.gz: .*{reason}"):
        nifti.read(make(tmp_path / "a.nii.gz", data))


def test_an_empty_mask_is_a_mask(tmp_path):
    assert not nifti.read_labels(make(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.uint8))).voxels.any()


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<u2", ">i4", "<f4", ">f8"])
def test_reads_what_was_stored(tmp_path, kind, suffix, dtype):
    header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
    image = kind(DATA.astype(dtype), PSR, header, dtype=np.dtype(dtype))
    nib.save(image, tmp_path / f"a{suffix}")
    scan = nifti.read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.voxels, DATA)
    np.testing.assert_array_equal(scan.affine, PSR)
    assert (scan.voxels.dtype, scan.affine.dtype) == (np.float32, np.float64)
    labels = nifti.read_labels(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(labels.voxels, DATA)
    assert labels.voxels.dtype == np.int32


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
def test_reads_mgh(tmp_path, name):
    path = make_mgh(tmp_path / name, affine=TILTED)
    scan = nifti.read(path)
    np.testing.assert_array_equal(scan.voxels, DATA)
    np.testing.assert_allclose(scan.affine, TILTED, atol=1e-4)
    np.testing.assert_array_equal(nifti.read_labels(path).voxels, DATA)


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path):
    make(tmp_path / "a.nii").rename(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(nifti.read(tmp_path / "b.nii.gz").voxels, DATA)


def test_slope_and_intercept(tmp_path):
    path = make(tmp_path / "a.nii.gz", scl_slope=0.5, scl_inter=-10)
    np.testing.assert_array_equal(nifti.read(path).voxels, DATA * 0.5 - 10)
    np.testing.assert_array_equal(nifti.read(path).voxels, nib.load(path).get_fdata())


@pytest.mark.parametrize("slope", [0, np.nan])
def test_a_slope_of_zero_or_nan_is_no_scaling(tmp_path, slope):
    np.testing.assert_array_equal(nifti.read(make(tmp_path / "a.nii.gz", scl_slope=slope, scl_inter=3)).voxels, DATA)


def test_scaled_labels_are_exact_or_refused(tmp_path):
    np.testing.assert_array_equal(nifti.read_labels(make(tmp_path / "a.nii", scl_slope=2, scl_inter=1)).voxels, 2 * DATA + 1)
    with pytest.raises(InputError, match=r"b\.nii: label \S+ is not an integer"):
        nifti.read_labels(make(tmp_path / "b.nii", scl_slope=0.5))
    # What nibabel makes of cortex ids in a header that says uint8.
    squeezed = np.zeros((4, 4, 4))
    squeezed[0], squeezed[1] = 1035, 2035
    image = nib.Nifti1Image(squeezed, PSR)
    image.set_data_dtype(np.uint8)
    nib.save(image, tmp_path / "c.nii.gz")
    with pytest.raises(InputError, match=r"c\.nii\.gz: label 103\S+ is not an integer"):
        nifti.read_labels(tmp_path / "c.nii.gz")


@pytest.mark.parametrize(("value", "reason"), [(2.5, "label 2.5 is not"), (np.nan, "label nan is not"), (3e9, "beyond 32 bits")])
def test_labels_that_are_none(tmp_path, value, reason):
    with pytest.raises(InputError, match=reason):
        nifti.read_labels(make(tmp_path / "a.nii.gz", with_value(value, 0.1)))


@pytest.mark.parametrize("at", [(3, 3), (0,), (0, 0), (0, 4)])
def test_single_dimensions_before_and_after_are_left_out(tmp_path, at):
    """As machine learning's tools write batches and channels; the affine is of the three dimensions that are left."""
    data = DATA
    for axis in at:
        data = np.expand_dims(data, axis)
    scan = nifti.read(make(tmp_path / "a.nii.gz", data))
    np.testing.assert_array_equal(scan.voxels, DATA)
    np.testing.assert_array_equal(scan.affine, PSR)
    nifti_write.write_like(tmp_path / "seg.nii.gz", DATA, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "seg.nii.gz").affine, PSR)
    if data.ndim == 4:
        nib.save(nib.MGHImage(data, TILTED), tmp_path / "a.mgz")
        nifti_write.write_like(tmp_path / "seg.mgz", DATA, tmp_path / "a.mgz")
        scan, written = nifti.read(tmp_path / "a.mgz"), nib.load(tmp_path / "seg.mgz")
        np.testing.assert_array_equal(scan.voxels, written.dataobj)
        np.testing.assert_allclose(scan.affine, TILTED, atol=1e-4)
        np.testing.assert_allclose(written.affine, TILTED, atol=1e-4)


def test_the_one_form_that_is_set_rules(tmp_path):
    np.testing.assert_allclose(nifti.read(make(tmp_path / "a.nii", sform_code=0, srow_x=[9, 9, 9, 9])).affine, PSR, atol=1e-5)
    np.testing.assert_array_equal(nifti.read(make(tmp_path / "b.nii", qform_code=0, quatern_b=0.9)).affine, PSR)
    assert nifti.read(tmp_path / "a.nii").remarks == (
        "its s-form, which has code 0, leads elsewhere than its q-form (code 1), which was used",
    )
    assert not nifti.read(make(tmp_path / "d.nii", sform_code=0)).remarks
    assert not nifti.read(make(tmp_path / "e.nii", sform_code=0, srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)).remarks
    qfac = make(tmp_path / "c.nii", affine=np.diag([1.0, 1, 1, 1]), sform_code=0, pixdim=[0, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(nifti.read(qfac).affine, np.eye(4))


def test_forms_that_differ_by_a_registration_are_accepted(tmp_path):
    turn = np.deg2rad(20)
    rows = np.array([[1, 0, 0, 5], [0, np.cos(turn), -np.sin(turn), 3], [0, np.sin(turn), np.cos(turn), 2]])
    path = make(tmp_path / "a.nii", affine=np.eye(4), srow_x=rows[0], srow_y=rows[1], srow_z=rows[2], sform_code=4)
    np.testing.assert_allclose(nifti.read(path).affine[:3], rows, atol=1e-6)


def test_a_template_that_stretches_the_head_gives_way_to_the_scanner(tmp_path):
    """A registration's scales are not the head's: by the s-form its volumes would be 1.56 times as large."""
    stretched = np.diag([1.12, 1.16, 1.2, 1]) @ PSR
    path = make(tmp_path / "a.nii.gz", sform_code=4, **dict(zip(("srow_x", "srow_y", "srow_z"), stretched, strict=False)))
    scan = nifti.read(path)
    np.testing.assert_allclose(scan.affine, PSR, atol=1e-5)
    assert [remark for remark in scan.remarks if "2.32 × 2.4 × 2.24 mm" in remark and "the scanner's was used" in remark] == [*scan.remarks]
    assert scan.remarks and nifti.reorient(scan, "RAS").remarks == scan.remarks
    nifti_write.write_like(tmp_path / "seg.nii.gz", DATA, path)
    assert nib.load(tmp_path / "seg.nii.gz").affine.tobytes() == nib.load(path).affine.tobytes()
    assert nifti.read_labels(tmp_path / "seg.nii.gz").affine.tobytes() == scan.affine.tobytes()


def test_a_sheared_s_form_agrees_with_the_q_form_that_it_can_have(tmp_path):
    sheared = placed("RAS", "sheared", (2, 2, 2))
    scan = nifti.read(make(tmp_path / "a.nii", affine=sheared))
    np.testing.assert_allclose(scan.affine, sheared, atol=1e-5)
    assert scan.remarks == ()


@pytest.mark.parametrize(("unit", "mm"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0)])
@pytest.mark.parametrize("forms", [{}, {"qform_code": 0}, {"sform_code": 0}])
def test_the_unit_is_read_and_kept(tmp_path, unit, mm, forms):
    header = nib.Nifti1Header()
    header.set_xyzt_units(unit, "sec")
    stored = np.diag([1 / mm] * 3 + [1]) @ PSR
    path = make(tmp_path / "a.nii.gz", affine=stored, xyzt_units=header["xyzt_units"], **forms)
    np.testing.assert_allclose(nifti.read(path).affine, PSR, rtol=1e-6, atol=1e-4)
    nifti_write.write_like(tmp_path / "seg.nii.gz", DATA, path)
    nifti_write.write_soft(tmp_path / "post.nii.gz", [DATA.astype(np.uint8)], 1, path)
    for name in ("seg.nii.gz", "post.nii.gz"):
        written = nib.load(tmp_path / name)
        assert written.header.get_xyzt_units()[0] == unit and written.affine.tobytes() == nib.load(path).affine.tobytes()
    assert nifti.read_labels(tmp_path / "seg.nii.gz").affine.tobytes() == nifti.read(path).affine.tobytes()


def tagged(volume, *tags):
    """The bytes of an MGH file with what FreeSurfer writes behind the voxels and the five numbers of the sequence."""
    return nib.MGHImage(volume, TILTED).to_bytes() + b"".join(tags)


XFORM = struct.pack(">iq", 31, 40) + b"/subjects/one/mri/transforms/talair.xfm\0"
COMMAND = struct.pack(">iq", 3, 3000) + b"mri_convert".ljust(3000, b" ")
COLOURS = struct.pack(">iiii", 1, -2, 100, 4) + b"LUT\0" + bytes(range(250)) * 20


@pytest.mark.parametrize("tags", [(), (XFORM,), (XFORM, COMMAND, COMMAND), (XFORM, COLOURS, COMMAND)])
def test_what_follows_the_voxels_of_mgh(tmp_path, tags):
    """Tags, however long beside a slice, belong to the file; a slice that the header does not count does not, be it all of air."""
    volume = np.zeros((12, 13, 14), np.uint8)
    volume[3:9, 3:9, 3:9] = np.arange(216).reshape(6, 6, 6)
    (tmp_path / "a.mgh").write_bytes(tagged(volume, *tags))
    np.testing.assert_array_equal(nifti.read(tmp_path / "a.mgh").voxels, volume)
    noisy = np.random.default_rng(0).integers(0, 6, volume.shape).astype(np.uint8)
    for content, axis in product((tagged(volume, *tags), tagged(noisy, *tags)), range(3)):
        content = bytearray(content)
        content[7 + 4 * axis] -= 1
        (tmp_path / "a.mgh").write_bytes(content)
        with pytest.raises(InputError, match="holds more than"):
            nifti.read(tmp_path / "a.mgh")


def header_bytes():
    """Of each format a file, how long its header is, and which of its bytes are said twice."""
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        yield kind.__name__, lambda d, kind=kind: make(d / "a.nii", affine=TILTED, kind=kind), kind.header_class.sizeof_hdr, range(1000)
    yield "MGHImage", lambda d: make_mgh(d / "a.mgh", affine=TILTED), 90, range(42, 78)


@pytest.mark.parametrize(("build", "size", "twice"), [f[1:] for f in header_bytes()], ids=[f[0] for f in header_bytes()])
def test_a_changed_header_is_refused_in_a_line_or_changes_nothing_that_it_says_twice(tmp_path, build, size, twice):
    path = build(tmp_path)
    sound, content, rng, refused = nifti.read(path), path.read_bytes(), np.random.default_rng(0), 0
    for at, bit in rng.permutation([*product(range(size), range(8))])[:300].tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        try:
            scan = nifti.read(path)
        except InputError as refusal:
            refused += 1
            assert str(refusal).startswith(f"{path}: ") and "\n" not in str(refusal)
        else:
            assert scan.voxels.shape == sound.voxels.shape
            assert at not in twice or farthest(scan.affine, sound.affine, sound.voxels.shape) <= 1
    assert refused > 40


def test_bit_flips_are_noticed_or_harmless(tmp_path):
    path = make(tmp_path / "a.nii.gz", np.tile(DATA, (3, 3, 3)))
    sound, content = nifti.read(path), path.read_bytes()
    rng, refused = np.random.default_rng(1), 0
    for position in [*range(10), *rng.integers(10, len(content), 60)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            scan = nifti.read(path)
        except InputError:
            refused += 1
        else:
            np.testing.assert_array_equal(scan.voxels, sound.voxels)
            np.testing.assert_array_equal(scan.affine, sound.affine)
    assert refused >= 60


def test_the_limit_is_checked_before_reading(tmp_path, monkeypatch):
    path = make(tmp_path / "a.nii.gz")
    monkeypatch.setattr(nifti, "LIMIT", 352 + DATA.size * 4)
    nifti.read(path)
    monkeypatch.setattr(nifti, "LIMIT", DATA.size * 4 - 1)
    with pytest.raises(InputError, match="claims shape"):
        nifti.read(path)


def test_what_compresses_as_air_alone_is_not_unpacked(tmp_path, monkeypatch):
    """A file of a megabyte can hold gigabytes of zeros; only a label map may be empty."""
    path = make(tmp_path / "a.nii.gz", np.zeros((80, 80, 80), np.uint8))
    with pytest.raises(InputError, match="every voxel is 0"):
        nifti.read(path)
    monkeypatch.setattr(nifti, "LARGE", 10**5)
    monkeypatch.setattr(nifti, "_volume", None)
    with pytest.raises(InputError, match="empty image"):
        nifti.read(path)


def test_a_volume_is_read_in_slabs(tmp_path, monkeypatch):
    path = make(tmp_path / "a.nii.gz", scl_slope=0.5, scl_inter=-10)
    whole, asked = nifti.read(path).voxels, []
    monkeypatch.setattr(nifti, "SLAB", 3 * DATA[:, :, 0].nbytes)
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    np.testing.assert_array_equal(nifti.read(path).voxels, whole)
    assert asked[1:4] == [3 * DATA[:, :, 0].nbytes] * 2 + [2 * DATA[:, :, 0].nbytes]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_integers_round_trip_exactly(tmp_path, suffix, dtype):
    labels = np.zeros((5, 6, 7), dtype)
    labels[1:3], labels[3:] = (1035, 2035) if dtype != np.uint8 else (35, 255)
    path = tmp_path / "new" / f"a{suffix}"
    nifti_write.write(path, labels, PSR)
    again = nifti.read_labels(path)
    np.testing.assert_array_equal(again.voxels, labels)
    np.testing.assert_array_equal(again.affine, PSR)
    stored = nib.load(path)
    assert stored.get_data_dtype() == dtype
    assert (stored.dataobj.slope, stored.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asarray(stored.dataobj), labels)
    assert stored.get_qform(coded=True)[1] == stored.get_sform(coded=True)[1] == 1
    np.testing.assert_allclose(stored.get_qform(), PSR, atol=1e-5)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_floats_and_an_oblique_affine_round_trip_bit_for_bit(tmp_path):
    affine = OBLIQUE.astype(np.float32).astype(np.float64)
    voxels = np.random.default_rng(2).normal(size=(5, 6, 7))
    nifti_write.write(tmp_path / "a.nii.gz", voxels, affine)
    scan = nifti.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.voxels, voxels.astype(np.float32))
    assert scan.affine.tobytes() == affine.tobytes()


def test_equal_input_gives_equal_bytes_and_booleans_a_mask(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti_write.write(tmp_path / name, DATA > 100, PSR)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == bytes(4)  # gzip's time of writing
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "a.nii.gz").voxels, DATA > 100)
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint8


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    nifti_write.write(tmp_path / "a.nii.gz", DATA, PSR)
    before = (tmp_path / "a.nii.gz").read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        nifti_write.write(tmp_path / "a.nii.gz", DATA + 1, PSR)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_bytes() == before


def test_write_refuses_other_names(tmp_path):
    with pytest.raises(InputError, match="change the name"):
        nifti_write.write(tmp_path / "a.img", DATA, PSR)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_writes_mgh_as_nibabel_does(tmp_path, name, dtype):
    nifti_write.write(tmp_path / name, DATA.astype(dtype), TILTED)
    content = (tmp_path / name).read_bytes()
    content = gzip.decompress(content) if name == "a.mgz" else content
    theirs = nib.MGHImage(DATA.astype(dtype), TILTED).to_bytes()
    assert content == theirs
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / name).voxels, DATA)
    with pytest.raises(InputError, match="MGH does not hold int64; write it as"):
        nifti_write.write(tmp_path / name, DATA.astype(np.int64), PSR)


def placed(codes, lines, spacing=(0.7, 1.3, 2.1)):
    """The affine of a scan whose axes point to `codes` before they are turned."""
    axes, affine = np.zeros((3, 3)), np.eye(4)
    for k, letter in enumerate(codes):
        axes["LRPAIS".index(letter) // 2, k] = 1 if letter in "RAS" else -1
    affine[:3, :3] = LINES[lines] @ axes * spacing
    affine[:3, 3] = -71.3, 88.9, -40.1
    return affine


def orientations():
    return ["".join(letters) for axes in permutations(("LR", "PA", "IS")) for letters in product(*axes)]


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("codes", orientations())
def test_what_is_written_lies_on_the_scan_to_the_bit(tmp_path, codes, lines):
    """Every orientation, oblique and anisotropic: the affine that nibabel reads is the scan's, and both forms are it."""
    affine, labels = placed(codes, lines), DATA.astype(np.uint8)
    make(tmp_path / "scan.nii.gz", affine=affine, sform_code=4, qform_code=2, scl_slope=2, scl_inter=-7)
    nifti_write.write_like(tmp_path / "seg.nii.gz", labels, tmp_path / "scan.nii.gz")
    scan, written = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "seg.nii.gz")
    assert written.affine.tobytes() == scan.affine.tobytes() and written.shape == scan.shape
    np.testing.assert_array_equal(written.dataobj, labels)
    assert (written.get_data_dtype(), written.dataobj.slope, written.dataobj.inter) == (np.uint8, 1, 0)
    (q, q_code), (s, s_code) = written.get_qform(coded=True), written.get_sform(coded=True)
    assert (q_code, s_code) == (2, 4)
    if lines == "sheared":  # a quaternion turns and does not shear: as near as it can be
        near = np.linalg.norm((q - s)[:3, :3], axis=0) / np.linalg.norm(s[:3, :3], axis=0)
        assert 0.01 < near.max() < 0.05 and np.array_equal(q[:3, 3], s[:3, 3])
    else:
        np.testing.assert_allclose(q, s, atol=1e-3)  # of half a turn a quaternion in float32 says no more
    nib.save(nib.MGHImage(DATA, affine), tmp_path / "scan.mgz")
    if lines == "sheared":
        with pytest.raises(InputError, match="right angles"):
            nifti.read(tmp_path / "scan.mgz")
        with pytest.raises(InputError, match=r"right angles; write it as \.nii\.gz"):
            nifti_write.write_like(tmp_path / "seg.mgz", labels, tmp_path / "scan.nii.gz")
        return
    nifti_write.write_like(tmp_path / "seg.mgz", labels, tmp_path / "scan.mgz")
    scan, written = nib.load(tmp_path / "scan.mgz"), nib.load(tmp_path / "seg.mgz")
    assert written.affine.tobytes() == scan.affine.tobytes() and written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.dataobj, labels)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("forms", [{"qform_code": 0}, {"sform_code": 0}, {"sform_code": 0, "pixdim": [0, 0.7, 1.3, 2.1, 0, 0, 0, 0]}, {}])
def test_one_form_or_both_and_either_version(tmp_path, kind, forms):
    """A q-form alone stays alone: as a float32 matrix it would be another affine."""
    affine = placed("RAS" if "pixdim" in forms else "LAS", "oblique")
    make(tmp_path / "scan.nii", affine=affine, kind=kind, **forms)
    nifti_write.write_like(tmp_path / "seg.nii", DATA, tmp_path / "scan.nii")
    ours, theirs = nifti.read(tmp_path / "seg.nii").affine, nifti.read(tmp_path / "scan.nii").affine
    assert ours.tobytes() == theirs.tobytes() == nib.load(tmp_path / "seg.nii").affine.tobytes()
    header = nib.load(tmp_path / "seg.nii").header
    assert isinstance(header, kind.header_class) and (header["qform_code"], header["sform_code"]) == (
        forms.get("qform_code", 1),
        forms.get("sform_code", 1),
    )
    assert (kind is nib.Nifti2Image) == isinstance(header, nib.Nifti2Header)


def test_forms_that_differ_are_both_kept(tmp_path):
    """By whichever of them a tool goes, the labels lie on the scan."""
    make(tmp_path / "scan.nii.gz", affine=np.eye(4), srow_x=[0.94, -0.34, 0, 5], srow_y=[0.34, 0.94, 0, 3], sform_code=3)
    nifti_write.write_like(tmp_path / "seg.nii.gz", DATA, tmp_path / "scan.nii.gz")
    scan, written = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "seg.nii.gz")
    assert written.affine.tobytes() == scan.affine.tobytes()
    assert written.get_qform().tobytes() == scan.get_qform().tobytes() and not np.allclose(written.affine, written.get_qform(), atol=0.1)


@pytest.mark.parametrize(("scan", "seg"), [("a.mgz", "b.nii.gz"), ("a.nii.gz", "b.mgz")])
def test_another_format_is_as_near_as_float32(tmp_path, scan, seg):
    (make_mgh if scan == "a.mgz" else make)(tmp_path / scan, affine=TILTED)
    nifti_write.write_like(tmp_path / seg, DATA, tmp_path / scan)
    np.testing.assert_allclose(nib.load(tmp_path / seg).affine, nib.load(tmp_path / scan).affine, atol=2e-5)


def test_a_scan_that_has_changed_is_noticed(tmp_path):
    with pytest.raises(InputError, match="another shape than when it was read"):
        nifti_write.write_like(tmp_path / "seg.nii", DATA[1:], make(tmp_path / "a.nii"))
    assert not (tmp_path / "seg.nii").exists()


@pytest.mark.parametrize("name", ["post.nii", "post.nii.gz"])
def test_soft_maps_are_written_as_they_come(tmp_path, name):
    maps = [np.full(DATA.shape, value, np.uint8) for value in (0, 51, 255)]
    maps[1][1, 2, 3] = 102
    nifti_write.write_soft(tmp_path / name, iter(maps), 3, make_mgh(tmp_path / "a.mgz", affine=PSR))
    image = nib.load(tmp_path / name)
    assert image.shape == (*DATA.shape, 3) and image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, PSR)
    expected = np.zeros(image.shape)
    expected[..., 1], expected[1, 2, 3, 1], expected[..., 2] = 0.2, 0.4, 1
    np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-6)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.mgz", name]
    with pytest.raises(InputError, match="soft maps are written as"):
        nifti_write.write_soft(tmp_path / "post.mgz", iter(maps), 3, tmp_path / "a.mgz")


def test_orientation():
    assert nifti.orientation(np.eye(4)) == "RAS"
    assert nifti.orientation(PSR) == "PSR"
    assert nifti.orientation(np.diag([-1.0, 1, -1, 1])) == "LAI"


@pytest.mark.parametrize("codes", ["RSP", "RAS", "LIA", "IPR"])
@pytest.mark.parametrize("affine", [PSR, OBLIQUE])
def test_reorient_keeps_every_voxel_in_its_place(codes, affine):
    scan = nifti.Scan(DATA, affine)
    turned = nifti.reorient(scan, codes)
    assert nifti.orientation(turned.affine) == codes
    # Each voxel's place in the world, and what is there, before and after.
    places = []
    for voxels, to_world, _ in (scan, turned):
        index = np.indices(voxels.shape).reshape(3, -1)
        world = to_world[:3, :3] @ index + to_world[:3, 3:]
        table = np.vstack([np.round(world, 6) + 0.0, voxels[tuple(index)]])
        places.append(table[:, np.lexsort(table)])
    np.testing.assert_allclose(*places, atol=1e-5)
    reference = nib.Nifti1Image(DATA, affine)
    reference = reference.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes)))
    )
    np.testing.assert_array_equal(turned.voxels, np.asarray(reference.dataobj))
    np.testing.assert_allclose(turned.affine, reference.affine, atol=1e-9)


def test_reorient_gives_what_was_asked_for_however_the_head_is_tilted():
    """Also beyond 45°, where the closest direction of one axis may be another's too."""
    rng, index = np.random.default_rng(0), np.indices(DATA.shape).reshape(3, -1)
    for turn, codes in zip(Rotation.from_quat(rng.normal(size=(300, 4))).as_matrix(), rng.permutation(orientations() * 7), strict=False):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.5, 3, 3), rng.normal(0, 50, 3)
        turned = nifti.reorient(nifti.Scan(DATA, affine), str(codes))
        assert nifti.orientation(turned.affine) == codes
        back = np.rint(np.linalg.solve(turned.affine, affine @ np.vstack([index, np.ones(DATA.size)])))[:3].astype(int)
        np.testing.assert_array_equal(turned.voxels[tuple(back)], DATA[tuple(index)])


def test_reorient_of_a_small_case_by_hand():
    voxels = np.arange(24).reshape(2, 3, 4)
    turned = nifti.reorient(nifti.Scan(voxels, np.eye(4)), "RSP")
    np.testing.assert_array_equal(turned.voxels, voxels.transpose(0, 2, 1)[:, :, ::-1])
    np.testing.assert_array_equal(turned.affine, [[1, 0, 0, 0], [0, 0, -1, 2], [0, 1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("codes", ["RA", "RRS", "RAX", "RASA", "ras"])
def test_unknown_orientations_are_refused(codes):
    with pytest.raises(InputError, match="once, e"):
        nifti.reorient(nifti.Scan(DATA, PSR), codes)


def test_a_quaternion_that_was_rounded_above_one_is_a_half_turn(tmp_path):
    """As in published scans, which nibabel alone refuses."""
    turned = np.diag([2.0, -2, -2, 1]) @ np.array([[1, 0, 0, -70], [0, 1, 0, -90], [0, 0, 1, -60], [0, 0, 0, 1.0]])
    path = make(tmp_path / "a.nii", affine=turned, quatern_b=1.0000004)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path).header.get_qform()
    np.testing.assert_allclose(nifti.read(path).affine, turned, atol=1e-4)
