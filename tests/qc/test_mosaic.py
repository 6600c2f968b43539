"""Pictures of a case: left is left, millimetres are millimetres whatever the voxels, outlines are one pixel wide and the smaller one's."""

import io

import numpy as np
import pytest
from PIL import Image

from brainseg_jax.data.labels import lookup, parse_table, read_table
from brainseg_jax.data.nifti import Scan, reorient
from brainseg_jax.data.sample import template
from brainseg_jax.qc.mosaic import GAP, MM, WINDOW, mosaic

TABLE = parse_table("id\tname\tpartner\tcolour\n4\tLeft\t5\t#ff0000\n5\tRight\t4\t#00ff00\n9\tInner\t9\t#0000ff\n", "three")
SIZES = {"sagittal": (WINDOW[1], WINDOW[2]), "coronal": (WINDOW[0], WINDOW[2]), "axial": (WINDOW[0], WINDOW[1])}
COLOURS = {"#ff0000": 1, "#00ff00": 2, "#0000ff": 3}


def volume(spacing=(2.0, 2.0, 2.0), mm=(160, 200, 160)):
    """An empty scan of `mm` and its classes; world 0 is in the middle."""
    shape = [round(size / s) for size, s in zip(mm, spacing, strict=True)]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return Scan(np.zeros(shape, np.float32), affine), np.zeros(shape, np.uint8)


def box(scan, low, high):
    """The voxels whose centres lie between two points in world mm."""
    at = np.moveaxis(np.indices(scan.voxels.shape), 0, -1) * np.diag(scan.affine)[:3] + scan.affine[:3, 3]
    return ((at > low) & (at < high)).all(axis=-1)


def tiles(picture, which="scan"):
    """The three slices of a picture, as grey values or as the numbers of COLOURS."""
    with Image.open(io.BytesIO(getattr(picture, which))) as image:
        if which == "scan":
            whole = np.asarray(image)
        else:
            colours = np.asarray(image.convert("RGBA"))
            whole = sum(number * (colours == [*bytes.fromhex(c[1:]), 255]).all(axis=-1) for c, number in COLOURS.items())
    w = (whole.shape[1] + GAP) // 3
    return [whole[:, i * w : (i + 1) * w - GAP] for i in range(3)]


def middle(mask):
    """(row, column) of a mask's middle, as shares of the picture."""
    return np.argwhere(mask).mean(axis=0) / mask.shape


def test_left_is_left_up_is_up_and_all_pictures_have_one_scale():
    scan, classes = volume()
    head = box(scan, (-60, -80, -60), (60, 80, 60))
    classes[head & (np.indices(head.shape)[0] < 40)] = 1
    classes[head & (classes == 0)] = 2
    scan.voxels[head] = 100
    scan.voxels[box(scan, (-60, 40, 20), (-20, 80, 60))] = 200  # left, front, top
    for picture in mosaic(scan, classes, TABLE):
        h, w = round(SIZES[picture.plane][1] / MM), round(SIZES[picture.plane][0] / MM)
        assert (picture.height, picture.width) == (h, 3 * w + 2 * GAP)
        for tile in tiles(picture):
            assert tile.shape == (h, w)
        # First sagittal slice: on the left; last of the others: in front, on top.
        bright = middle(tiles(picture)[0 if picture.plane == "sagittal" else 2] > 180)
        assert bright[0] < 0.5
        assert bright[1] > 0.5 if picture.plane == "sagittal" else bright[1] < 0.5
    coronal = tiles(mosaic(scan, classes, TABLE)[1], "lines")[1]
    assert middle(coronal == 1)[1] < 0.5 < middle(coronal == 2)[1]


@pytest.mark.parametrize("codes", ["LPS", "PSR", "LIA", "SAR"])
def test_the_order_of_voxels_on_disk_does_not_matter(rng, codes):
    scan, classes = volume((2.0, 2.5, 4.0))
    scan.voxels[:] = rng.uniform(0, 100, scan.voxels.shape)
    classes[box(scan, (-50, -20, -30), (20, 70, 60))] = 1
    classes[box(scan, (-10, -20, -30), (20, 30, 50))] = 3
    turned = reorient(scan, codes)
    assert mosaic(turned, reorient(Scan(classes, scan.affine), codes).voxels, TABLE) == mosaic(scan, classes, TABLE)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (4.0, 0.8, 2.0)])
def test_a_cube_is_a_square_of_its_size_whatever_the_voxels(spacing):
    scan, classes = volume(spacing)
    classes[box(scan, (-40, -40, -40), (40, 40, 40))] = 1
    scan.voxels[classes > 0] = 100
    for picture in mosaic(scan, classes, TABLE):
        for lines in tiles(picture, "lines"):
            rows, columns = np.nonzero(lines == 1)
            for side in (rows, columns):
                assert np.ptp(side) + 1 == pytest.approx(80 / MM, abs=max(spacing) / MM)


def test_outlines_are_a_pixel_wide_and_the_smaller_structure_s():
    scan, classes = volume((1.25, 1.25, 1.25))
    classes[box(scan, (-50, -50, -50), (50, 50, 50))] = 1
    classes[box(scan, (-10, -10, -10), (10, 10, 10))] = 3
    scan.voxels[classes > 0] = 100
    lines = tiles(mosaic(scan, classes, TABLE)[2], "lines")[1]
    # Squares of 80 and 16 pixels: of each the pixels along its sides.
    assert [(lines == n).sum() for n in (1, 2, 3)] == [4 * 79, 0, 4 * 15]


def test_the_cortex_leaves_its_inner_side_to_what_lies_within():
    """Whichever of the two is larger, and on both sides alike."""
    lines = ("4\tLeft\t5\t#ff0000\tcortex", "5\tRight\t4\t#00ff00\tcortex", "9\tInner\t9\t#0000ff\twhite matter")
    table = parse_table("\n".join(("id\tname\tpartner\tcolour\ttissue", *lines)), "three")
    for half in (25, 45):  # of 50: an inside that is smaller than the cortex, and one that is larger
        scan, classes = volume((1.25, 1.25, 1.25))
        classes[box(scan, (-50, -50, -50), (0, 50, 50))] = 1
        classes[box(scan, (0, -50, -50), (50, 50, 50))] = 2
        classes[box(scan, (-half,) * 3, (half,) * 3)] = 3
        scan.voxels[classes > 0] = 100
        outline = tiles(mosaic(scan, classes, table)[2], "lines")[1]
        assert (outline == 3).sum() == 4 * (2 * half / MM - 1)


def test_beyond_the_image_is_grey_and_what_is_cut_there_is_closed():
    scan, classes = volume((2.5, 2.5, 2.5), mm=(160, 200, 80))
    classes[box(scan, (-50, -50, -10), (50, 50, 40))] = 1
    scan.voxels[classes > 0] = 100
    sagittal = mosaic(scan, classes, TABLE)[0]
    grey, lines = tiles(sagittal)[1], tiles(sagittal, "lines")[1]
    # Of the window's 160 mm the image fills the middle 80: 32 pixels are left above, and as many below.
    assert (np.abs(grey[20:30, 40:120].astype(int) - 56) < 6).all()
    assert (np.abs(grey[98:].astype(int) - 56) < 6).all()
    assert grey[36:68, 60:100].min() > 150
    top = np.nonzero(lines.any(axis=1))[0][0]
    assert (lines[top] == 1).sum() == pytest.approx(100 / MM, abs=2)
    assert top == 32


def test_half_a_brain_is_shown_with_its_other_half():
    scan, classes = volume(mm=(200, 240, 200))
    classes[box(scan, (-70, -80, -60), (0, 80, 60))] = 1
    scan.voxels[box(scan, (-70, -80, -60), (70, 80, 60))] = 100
    coronal, lines = (tiles(mosaic(scan, classes, TABLE)[1], which)[1] for which in ("scan", "lines"))
    # The image's 200 mm begin at its left edge: the brain's 140 after 30 of them.
    bright = np.nonzero(coronal[64] > 150)[0]
    assert (bright[0], bright[-1]) == (pytest.approx(30 / MM, abs=2), 127)
    assert np.nonzero(lines.any(axis=0))[0][0] == pytest.approx(30 / MM, abs=2)


def test_nothing_segmented_shows_the_middle_of_the_image():
    scan, classes = volume()
    scan.voxels[box(scan, (-60, -60, -60), (60, 60, 60))] = 100
    for picture in mosaic(scan, classes, TABLE):
        assert tiles(picture)[1][40:88, 40:88].min() > 150
        assert not np.any(tiles(picture, "lines"))


def test_letters_say_where_is_what():
    from brainseg_jax.qc.mosaic import GLYPHS

    scan, classes = volume()
    for picture in mosaic(scan, classes, TABLE):
        left, right = "PA" if picture.plane == "sagittal" else "LR"
        for tile in tiles(picture):
            for letter, column in ((left, 3), (right, tile.shape[1] - 13)):
                found = tile[4:18:2, column : column + 10 : 2] > 120
                rows = [int("".join(map(str, row.astype(int))), 2) for row in found]
                assert tuple(rows) == GLYPHS[letter]


def test_a_head_takes_less_than_40_kb():
    image, labels, _ = template()
    classes = lookup(labels.voxels, read_table("freesurfer"), read_table("freesurfer"))
    pictures = mosaic(image, classes, read_table("freesurfer"))
    assert 10_000 < sum(len(p.scan) + len(p.lines) for p in pictures) < 40_000
