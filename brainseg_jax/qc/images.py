"""Pictures as bytes, with NumPy and zlib alone: greyscale JPEG (ITU-T T.81, baseline, with the tables of its annex K) and PNG in a palette.

So a page of a thousand cases has small pictures wherever the package runs: an imaging library comes with the extra `view` only.
"""

import struct
import zlib

import numpy as np
from jaxtyping import Integer, UInt8
from scipy import fft

# The order of a block's 64 frequencies, from low to high: diagonals, upwards and downwards in turn.
ZIGZAG = np.array(sorted(range(64), key=lambda i: (sum(divmod(i, 8)), i // 8 if sum(divmod(i, 8)) % 2 else i % 8)))
# Annex K: the steps of each frequency at quality 50 [8 8], and how many Huffman codes there are of 1 to 16 bits, and for which symbols.
STEPS = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61),
        *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77),
        *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101),
        *(72, 92, 95, 98, 112, 100, 103, 99),
    ]
)
DC = bytes.fromhex("00010501010101010100000000000000"), bytes(range(12))
AC = (
    bytes.fromhex("0002010303020403050504040000017d"),
    bytes.fromhex(
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738393a"
        "434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aa"
        "b2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
    ),
)
MORE_ZEROS, END = 0xF0, 0x00  # symbols: sixteen zeros and more to come; only zeros to the block's end


def jpeg(image: UInt8[np.ndarray, "h w"], quality: int = 60) -> bytes:
    """A greyscale image as JPEG; `quality` from 1 to 100, as libjpeg counts it."""
    h, w = image.shape
    padded = np.pad(image, ((0, -h % 8), (0, -w % 8)), mode="edge") - 128.0
    blocks = padded.reshape(padded.shape[0] // 8, 8, -1, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = np.clip((STEPS * scale + 50) // 100, 1, 255)
    frequencies = fft.dctn(blocks, axes=(1, 2), norm="ortho").reshape(-1, 64)
    values = np.rint(frequencies / steps).astype(np.int64)[:, ZIGZAG]
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xE0, b"JFIF\0" + bytes((1, 1, 0, 0, 1, 0, 1, 0, 0))),
            _segment(0xDB, b"\0" + bytes(steps[ZIGZAG].tolist())),
            _segment(0xC0, struct.pack(">BHHB", 8, h, w, 1) + bytes((1, 0x11, 0))),
            _segment(0xC4, b"\x00" + b"".join(DC)),
            _segment(0xC4, b"\x10" + b"".join(AC)),
            _segment(0xDA, bytes((1, 1, 0, 0, 63, 0))),
            _entropy_coded(values).replace(b"\xff", b"\xff\0"),
            b"\xff\xd9",
        )
    )


def png(image: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "n 4"]) -> bytes:
    """An image of indices into a palette of red, green, blue and opacity, as PNG."""
    h, w = image.shape
    lines = np.pad(image, ((0, 0), (1, 0))).tobytes()  # each line begins with its filter: 0, none
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 3, 0, 0, 0)),
        (b"PLTE", palette[:, :3].tobytes()),
        (b"tRNS", palette[:, 3].tobytes()),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks
    )


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _huffman(counts: bytes, symbols: bytes) -> tuple[Integer[np.ndarray, "256"], Integer[np.ndarray, "256"]]:
    """The code of each symbol and its length in bits: codes of one length count up, and go on from those one bit shorter."""
    codes, lengths = np.zeros((2, 256), np.int64)
    code, rest = 0, iter(symbols)
    for length, count in enumerate(counts, 1):
        for symbol in (next(rest) for _ in range(count)):
            codes[symbol], lengths[symbol] = code, length
            code += 1
        code *= 2
    return codes, lengths


def _entropy_coded(values: Integer[np.ndarray, "n 64"]) -> bytes:
    """Quantised blocks in zigzag order as Huffman codes (T.81, annex F): first each block's difference to the last, then runs of zeros."""
    block, place = np.nonzero(values[:, 1:])
    place += 1
    first = np.diff(block, prepend=-1) > 0
    zeros = place - np.where(first, 0, np.roll(place, 1)) - 1
    dc, ac = np.diff(values[:, 0], prepend=0), values[block, place]
    dc_bits, ac_bits = (np.frexp(np.abs(v))[1] for v in (dc, ac))
    (dc_code, dc_length), (ac_code, ac_length) = _huffman(*DC), _huffman(*AC)
    ended = np.flatnonzero(values[:, 63] == 0)
    again = np.repeat(np.arange(len(zeros)), zeros // 16)
    symbol = zeros % 16 * 16 + ac_bits

    def with_value(code: np.ndarray, value: np.ndarray, bits: np.ndarray) -> np.ndarray:
        return code << bits | np.where(value < 0, value + (1 << bits) - 1, value)

    # (block, place in it, code, bits): the same places in turn, more zeros before the value that follows them.
    parts = (
        (np.arange(len(dc)), np.zeros(len(dc), int), with_value(dc_code[dc_bits], dc, dc_bits), dc_length[dc_bits] + dc_bits),
        (block[again], place[again], np.full(len(again), ac_code[MORE_ZEROS]), np.full(len(again), ac_length[MORE_ZEROS])),
        (block, place, with_value(ac_code[symbol], ac, ac_bits), ac_length[symbol] + ac_bits),
        (ended, np.full(len(ended), 64), np.full(len(ended), ac_code[END]), np.full(len(ended), ac_length[END])),
    )
    at, where, code, bits = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(at * 65 + where, kind="stable")
    code, bits = code[order], bits[order]
    stops = np.cumsum(bits)
    owner = np.repeat(np.arange(len(bits)), bits)
    stream = code[owner] >> (stops[owner] - 1 - np.arange(stops[-1])) & 1
    return np.packbits(np.pad(stream.astype(np.uint8), (0, -len(stream) % 8), constant_values=1)).tobytes()
