"""Image encoders: greyscale JPEG, and PNG with a palette and opacity."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def jpeg(image: UInt8[np.ndarray, "h w"], quality: int = 60) -> bytes:
    """A greyscale image as JPEG; `quality` from 1 to 100, as in libjpeg."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def png(image: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "n 4"]) -> bytes:
    """An image of indices into a palette of red, green, blue and opacity, as PNG."""
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.putpalette(palette.tobytes(), "RGBA")
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
