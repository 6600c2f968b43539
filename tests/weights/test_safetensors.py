"""Files as the format's description has them, byte by byte, and every header that must be refused."""

import json
import os

import ml_dtypes
import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.weights import safetensors

# Written out by hand from the format's description: length, header with its padding, then the numbers 1 and -2 and the bytes 3, 4, 5.
HEADER = (
    b'{"__metadata__":{"by":"hand"},'
    b'"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
    b'"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}'
)
GOLDEN = b"\x90\0\0\0\0\0\0\0" + HEADER + b"      " + b"\0\0\x80\x3f\0\0\0\xc0" + b"\3\4\5"


def make(path, header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + content)
    return path


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_bytes_are_the_formats(tmp_path):
    file = tmp_path / "new" / "w.safetensors"
    arrays = {"w": np.array([[1], [-2]], np.float32), "b": np.array([3, 4, 5], np.uint8)}
    safetensors.write(file, arrays, {"by": "hand"})
    assert file.read_bytes() == GOLDEN
    back, metadata = safetensors.read(file)
    assert metadata == {"by": "hand"} and list(back) == ["w", "b"]
    assert all(same(back[name], arrays[name]) for name in arrays)


def test_every_type_comes_back_bit_by_bit(tmp_path, rng):
    arrays = {}
    for code, dtype in reversed(safetensors.DTYPES.items()):
        content = rng.integers(0, 2 if code == "BOOL" else 256, 12 * dtype.itemsize, np.uint8)
        arrays |= {code: content.view(dtype).reshape(3, 4), f"{code} 0-d": content.view(dtype)[:1].reshape(())}
    arrays |= {"empty": np.zeros((0, 3), np.float32), "é\n": np.ones(1, ml_dtypes.bfloat16)}
    safetensors.write(tmp_path / "w", arrays, {})
    back, metadata = safetensors.read(tmp_path / "w")
    assert metadata == {} and set(back) == set(arrays)
    assert all(same(back[name], arrays[name]) for name in arrays)
    assert all(array.flags.aligned for array in back.values())


def test_strided_and_big_endian_arrays_are_written_as_rows(tmp_path):
    base = np.arange(24, dtype=np.int16).reshape(4, 6)
    arrays = {"t": base.T, "s": base[::2, ::-3], "e": np.broadcast_to(base[0], (3, 6)), "big": base.astype(">i2")}
    safetensors.write(tmp_path / "w", arrays, {})
    back, _ = safetensors.read(tmp_path / "w")
    assert all(same(back[name], np.ascontiguousarray(array).astype("<i2")) for name, array in arrays.items())


def test_no_arrays(tmp_path):
    safetensors.write(tmp_path / "w", {}, {})
    assert (tmp_path / "w").read_bytes() == b"\x08\0\0\0\0\0\0\0{}      "
    assert safetensors.read(tmp_path / "w") == ({}, {})


@pytest.mark.parametrize("array", [np.zeros(2, np.complex64), np.zeros(2, np.uint32), np.array(["a"]), np.array([None])], ids=str)
def test_a_type_the_format_lacks_leaves_no_file(tmp_path, array):
    with pytest.raises(InputError, match=r"'w' is .* convert it first"):
        safetensors.write(tmp_path / "w", {"w": array}, {})
    assert list(tmp_path.iterdir()) == []


def test_the_formats_own_key_is_no_name(tmp_path):
    with pytest.raises(InputError, match="rename it"):
        safetensors.write(tmp_path / "w", {"__metadata__": np.zeros(1, np.float32)}, {})


# In the brackets are the words of the library, which change with its releases.
DAMAGED = "is not a safetensors file, or is cut off or damaged ("
REFUSED = {
    "empty file": (lambda p: p.write_bytes(b""), DAMAGED),
    "short length": (lambda p: p.write_bytes(b"\2\0\0\0"), DAMAGED),
    "no header": (lambda p: p.write_bytes(bytes(8)), DAMAGED),
    "a zip": (lambda p: p.write_bytes(b"PK\3\4" + bytes(100)), DAMAGED),
    "length beyond the file": (lambda p: make(p, {"a": entry()}, b"1234", length=1000), DAMAGED),
    "length beyond all": (lambda p: make(p, {"a": entry()}, b"1234", length=2**64 - 1), DAMAGED),
    "leading space": (lambda p: make(p, b" {}"), "does not begin with"),
    "not json": (lambda p: make(p, b"{'a'}"), DAMAGED),
    "trailing words": (lambda p: make(p, b"{} {}"), DAMAGED),
    "not utf-8": (lambda p: make(p, b'{"\xff": 1}'), DAMAGED),
    "deep json": (lambda p: make(p, b'{"a":' + b"[" * 200_000), DAMAGED),
    "long integer": (lambda p: make(p, b'{"a":' + b"9" * 10_000 + b"}"), DAMAGED),
    "duplicate name": (lambda p: make(p, b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), b"1234"), "twice"),
    "duplicate field": (
        lambda p: make(p, b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', b"1234"),
        DAMAGED,
    ),
    "metadata not text": (lambda p: make(p, {"__metadata__": {"a": 1}}), DAMAGED),
    "metadata a list": (lambda p: make(p, {"__metadata__": []}), DAMAGED),
    "entry a list": (lambda p: make(p, {"a": []}), DAMAGED),
    "entry a list of all three": (lambda p: make(p, {"a": ["U8", [4], [0, 4]]}, b"1234"), "not described"),
    "field missing": (lambda p: make(p, {"a": {"dtype": "U8", "shape": [4]}}, b"1234"), DAMAGED),
    "field too many": (lambda p: make(p, {"a": entry() | {"more": 1}}, b"1234"), "not described"),
    "duplicate metadata": (lambda p: make(p, b'{"__metadata__":{"a":"1","a":"2"}}'), "twice"),
    "a type of the library's": (lambda p: make(p, {"a": entry("U32", (1,))}, b"1234"), "convert it first"),
    "unknown type": (lambda p: make(p, {"a": entry("F8_E4M3")}, b"1234"), "convert it first"),
    "float shape": (lambda p: make(p, {"a": entry(shape=(4.0,))}, b"1234"), DAMAGED),
    "boolean shape": (lambda p: make(p, {"a": entry(shape=(True,), offsets=(0, 1))}, b"1"), DAMAGED),
    "negative shape": (lambda p: make(p, {"a": entry(shape=(-2, -2))}, b"1234"), DAMAGED),
    "negative offset": (lambda p: make(p, {"a": entry(offsets=(-4, 0))}, b"1234"), DAMAGED),
    "three offsets": (lambda p: make(p, {"a": entry(offsets=(0, 4, 4))}, b"1234"), DAMAGED),
    "too many sides": (lambda p: make(p, {"a": entry(shape=(4,) + (1,) * 64)}, b"1234"), DAMAGED),
    "shape and bytes differ": (lambda p: make(p, {"a": entry("F32", (2,))}, b"1234"), DAMAGED),
    "shape overflows": (lambda p: make(p, {"a": entry(shape=(2**62, 4, 2**62))}, b"1234"), DAMAGED),
    "offsets backwards": (lambda p: make(p, {"a": entry(offsets=(4, 0))}, b"1234"), DAMAGED),
    "empty and boundless": (lambda p: make(p, {"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}), DAMAGED),
    "overlap": (lambda p: make(p, {"a": entry(), "b": entry(offsets=(2, 6))}, b"123456"), DAMAGED),
    "the same bytes twice": (lambda p: make(p, {"a": entry(), "b": entry()}, b"1234"), DAMAGED),
    "hole": (lambda p: make(p, {"a": entry(), "b": entry(offsets=(5, 9))}, b"123456789"), DAMAGED),
    "hole at the start": (lambda p: make(p, {"a": entry(offsets=(1, 5))}, b"12345"), DAMAGED),
    "surplus bytes": (lambda p: make(p, {"a": entry()}, b"12345"), DAMAGED),
    "cut off": (lambda p: make(p, {"a": entry()}, b"123"), DAMAGED),
    "no boolean": (lambda p: make(p, {"a": entry("BOOL")}, b"\0\1\2\0"), "booleans"),
    "a folder": (lambda p: p.mkdir(), "is a folder and no file; give a file of weights"),
    "a pipe": (os.mkfifo, "is a pipe or device and no file; give a file of weights"),
    "nothing": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path, case):
    file = tmp_path / "w.safetensors"
    prepare, words = REFUSED[case]
    prepare(file)
    with pytest.raises(InputError) as refusal:
        safetensors.read(file)
    line = str(refusal.value)
    assert line.startswith(f"{file}: ") and words in line and "\n" not in line and len(line) < 400


def test_a_header_beyond_the_limit_is_not_parsed_and_not_written(tmp_path, monkeypatch):
    file = make(tmp_path / "w", b"{}", length=safetensors.HEADER + 1)
    with file.open("r+b") as stream:
        stream.truncate(safetensors.HEADER + 100)  # of holes, no bytes on a disk
    with pytest.raises(InputError, match=r"(?i)header ?too ?large"):
        safetensors.read(file)
    file.write_bytes(GOLDEN)
    monkeypatch.setattr(safetensors, "HEADER", 50)
    with pytest.raises(InputError, match="shorten the metadata"):
        safetensors.write(file, {}, {"a": "b" * 50})
    assert file.read_bytes() == GOLDEN


def test_metadata_are_written_in_the_order_given(tmp_path):
    """Which is one of chance where the library writes them."""
    names = [f"{n}" for n in range(20)]
    safetensors.write(tmp_path / "w", {"a": np.zeros(1, np.float32)}, dict.fromkeys(names, "é"))
    assert list(safetensors.read(tmp_path / "w")[1]) == names


def test_damage_is_refused_or_leaves_the_arrays_described_as_they_were(tmp_path, rng):
    """The format has no checksum: a flip among the numbers or within a name passes, a flip that moves an array does not."""
    file = tmp_path / "w"
    content = np.frombuffer(GOLDEN, np.uint8)
    for _ in range(1000):
        damaged = content.copy()
        damaged[rng.integers(content.size)] ^= 1 << rng.integers(8)
        file.write_bytes(damaged.tobytes() if rng.random() < 0.8 else GOLDEN[: rng.integers(len(GOLDEN))])
        try:
            arrays, _ = safetensors.read(file)
        except InputError:
            continue
        assert sum(array.nbytes for array in arrays.values()) == 11
