"""Whether two results are the same to the bit: arrays, and what holds arrays."""

from typing import Any

import numpy as np


def equal(a: Any, b: Any) -> bool:
    """The same structure, types, shapes and bits."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(equal, a, b))
    if hasattr(a, "dtype"):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b
