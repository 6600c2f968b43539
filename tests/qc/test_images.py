"""Pictures come back as they were: greys nearly, indices and colours wholly."""

import io

import numpy as np
import pytest
from PIL import Image

from brainseg_jax.qc.images import jpeg, png


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (17, 9), (333, 641)])
def test_a_jpeg_has_the_images_size_and_greys(rng, shape):
    image = rng.integers(0, 256, shape).astype(np.uint8)
    with Image.open(io.BytesIO(jpeg(image, 100))) as picture:
        back = np.asarray(picture)
    assert (picture.format, picture.mode, back.shape) == ("JPEG", "L", shape)
    assert np.abs(back.astype(int) - image).max() <= 3


@pytest.mark.parametrize("colours", [2, 21, 256])
def test_png_keeps_every_index_and_colour(rng, colours):
    palette = rng.integers(0, 256, (colours, 4)).astype(np.uint8)
    image = rng.integers(0, colours, (13, 40)).astype(np.uint8)
    with Image.open(io.BytesIO(png(image, palette))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")
        assert (np.asarray(picture.convert("RGBA")) == palette[image]).all()
