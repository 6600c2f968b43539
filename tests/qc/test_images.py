"""Pictures against Pillow: what it reads of ours, and what it writes itself with the same tables."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brainseg_jax.qc.images import jpeg, png


def read(content):
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture)


def pillows(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.mark.parametrize("quality", [10, 60, 95])
def test_a_jpeg_is_what_pillow_makes_of_the_same_image(rng, quality):
    smooth = ndimage.gaussian_filter(rng.normal(size=(120, 176)), 3)
    image = np.rint(128 + 60 * smooth / smooth.std() + rng.normal(size=smooth.shape) * 5).clip(0, 255).astype(np.uint8)
    ours, theirs = jpeg(image, quality), pillows(image, quality)
    # Pillow's transform is of integers, so what lies between two steps is rounded either way; neither is nearer to the image.
    errors = [np.sqrt(np.mean((read(content) - image.astype(float)) ** 2)) for content in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert len(ours) == pytest.approx(len(theirs), rel=0.01)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (17, 9), (33, 64)])
def test_sizes_that_are_no_multiples_of_a_block(rng, shape):
    image = rng.integers(0, 256, shape).astype(np.uint8)
    back = read(jpeg(image, 100))
    assert back.shape == shape
    assert np.abs(back.astype(int) - image).max() <= 3


def test_long_runs_of_zeros_and_the_largest_values():
    """Checkerboards reach the last of the 64 frequencies past 62 zeros; black beside white has the largest first differences."""
    board = np.uint8(255) * (np.indices((8, 8)).sum(axis=0) % 2).astype(np.uint8)
    image = np.concatenate([np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8), board, np.zeros((8, 8), np.uint8)], axis=1)
    assert np.abs(read(jpeg(image, 100)).astype(int) - image).max() <= 2
    flat = np.full((64, 64), 77, np.uint8)
    assert (read(jpeg(flat, 60)) == read(pillows(flat, 60))).all()


def test_png_keeps_every_index_and_colour(rng):
    palette = rng.integers(0, 256, (21, 4)).astype(np.uint8)
    image = rng.integers(0, 21, (13, 40)).astype(np.uint8)
    with Image.open(io.BytesIO(png(image, palette))) as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture.convert("RGBA")) == palette[image]).all()
