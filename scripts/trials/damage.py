"""What happens to files: bits flip, ends are lost, blocks come back as zeros, numbers are absurd, files are emptied or gone."""

import numpy as np

HARMS = {"flip": 0.5, "flips": 0.1, "cut": 0.14, "zeros": 0.1, "planted": 0.08, "emptied": 0.03, "deleted": 0.05}
PLANTED = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"]


def harmed(content: bytes, rng: np.random.Generator, until: int = 0) -> tuple[bytes | None, str]:
    """A file's content after one harm, None if it is deleted, and words for it. `until`: harms within the file begin before this byte."""
    harm = str(rng.choice(list(HARMS), p=list(HARMS.values())))
    data, end = bytearray(content), min(until or len(content), len(content))
    if harm == "deleted" or not content:
        return None, "deleted"
    if harm == "emptied":
        return b"", "emptied"
    if harm == "cut":
        # A few bytes as often as any number: trailers are short.
        left = int(rng.integers(0, len(data))) if rng.random() < 0.5 else max(0, len(data) - int(rng.integers(1, 17)))
        return bytes(data[:left]), f"cut after byte {left} of {len(data)}"
    if harm == "zeros":
        begin, size = int(rng.integers(0, end)), int(2 ** rng.integers(0, 13))
        data[begin : begin + size] = bytes(len(data[begin : begin + size]))
        return bytes(data), f"zeros from byte {begin} to {begin + size}"
    if harm == "planted":
        begin, value = int(rng.integers(0, end)) // 4 * 4, PLANTED[rng.integers(len(PLANTED))]
        data[begin : begin + 4] = value[: len(data[begin : begin + 4])]
        return bytes(data), f"{value.hex()} at byte {begin}"
    places = [(int(rng.integers(0, end)), int(rng.integers(8))) for _ in range(1 if harm == "flip" else int(rng.integers(2, 9)))]
    for byte, bit in places:
        data[byte] ^= 1 << bit
    return bytes(data), "flipped " + ", ".join(f"bit {bit} of byte {byte}" for byte, bit in places)
