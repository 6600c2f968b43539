"""PyTorch is the oracle of what a checkpoint holds; what must be refused is made by hand, one attack each, and nothing of it may happen."""

import argparse
import contextlib
import copy
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict, UserDict
from pathlib import Path

import numpy as np
import pytest
from peers import peer

from brainseg_jax.core.errors import InputError
from converters import torchfile

torch = peer("torch")

TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def same(array, tensor):
    """Whether an array is a tensor, in type, shape and every bit."""
    tensor = tensor.detach()
    bits = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(array.dtype) == str(tensor.dtype).removeprefix("torch.") and array.shape == tuple(tensor.shape) and array.tobytes() == bits


def equal(read, value):
    """Whether what was read is what was saved, all the way down."""
    match value:
        case torch.Tensor():
            return same(read, value)
        case dict():
            return type(read) is dict and list(read) == list(value) and all(equal(read[key], value[key]) for key in value)
        case list() | tuple():
            return type(read) is type(value) and len(read) == len(value) and all(map(equal, read, value))
        case _:
            return type(read) is type(value) and read == value


@pytest.mark.parity
@pytest.mark.parametrize("name", TYPES)
def test_every_type_bit_by_bit(tmp_path, rng, name):
    dtype = getattr(torch, name)
    content = rng.integers(0, 2 if name == "bool" else 256, 12 * dtype.itemsize, np.uint8)
    tensor = torch.from_numpy(content).view(dtype).reshape(3, 4)
    weights = {"a": tensor, "row": tensor[1], "0-d": tensor[2, 3], "empty": tensor[:0]}
    assert equal(torchfile.read(saved(tmp_path / "w.pt", weights)), weights)


@pytest.mark.parity
def test_views_come_back_as_they_were_seen(tmp_path):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    weights = {
        "base": base,
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(1, 2, 0),
        "sliced": base[1:, ::2, 3:],
        "diagonal": base[0].diagonal(),
        "expanded": base[0, 0, 1].expand(7, 2),
        "unfolded": base.reshape(-1).unfold(0, 6, 2),
        "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "half": base[1].to(torch.bfloat16).T,
        "empty at the end": base[3:, :, 2:],
    }
    assert equal(torchfile.read(saved(tmp_path / "w.pt", weights)), weights)


@pytest.mark.parity
def test_shared_storages_are_read_once(tmp_path):
    base = torch.rand(1000)
    read = torchfile.read(saved(tmp_path / "w.pt", {"a": base, "b": base[10:20]}))
    assert np.shares_memory(read["a"], read["b"]) and not read["a"].flags.writeable
    read = torchfile.read(saved(tmp_path / "s.pt", {"storage": base.untyped_storage()}))
    assert read["storage"].tobytes() == base.numpy().tobytes()


@pytest.mark.parity
def test_a_model_with_its_optimizer(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    value = {"epoch": 3, "best_acc": 0.5, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    assert equal(torchfile.read(saved(tmp_path / "w.pt", value)), value)
    assert equal(torchfile.read(saved(tmp_path / "bare.pth", model.state_dict())), model.state_dict())


@pytest.mark.parity
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_everything_else_that_checkpoints_hold(tmp_path, protocol):
    args = argparse.Namespace(lr=1e-4, name="é", roi=[96, 96, 96], data="d", nested=argparse.Namespace(a=None))
    value = {
        "parameter": torch.nn.Parameter(torch.rand(2, 3)),
        "frozen": torch.nn.Parameter(torch.rand(2).half(), requires_grad=False),
        "order": OrderedDict([("z", 1), ("a", torch.ones(2))]),
        "plain": [
            None,
            True,
            False,
            0,
            -1,
            255,
            256,
            65536,
            -(2**31),
            2**40,
            2**100,
            -0.0,
            1e300,
            "text\n",
            "",
            (),
            (1,),
            (1, 2, 3, 4),
            [],
            {},
        ],
        "keys": {0: "a", -5: "b", True: "c"},
    }
    numbers = [np.float64(0.1), np.float32(0.1), np.float16(0.1), np.int64(-2), np.uint8(255), np.bool_(True)]
    more = {"args": args, "again": args, "types": [torch.float32, torch.bfloat16], "size": torch.Size([2, 3]), "numpy": numbers}
    more["devices"] = [torch.device("cpu"), torch.device("cuda", 1)]
    read = torchfile.read(saved(tmp_path / "w.pt", value | more, pickle_protocol=protocol))
    assert equal({key: read[key] for key in value}, value)
    assert type(read["args"]) is UserDict and read["again"] is read["args"]
    assert dict(read["args"]) == vars(args) | {"nested": {"a": None}}
    assert read["types"] == ["torch.float32", "torch.bfloat16"] and read["devices"] == ["cpu", "cuda:1"] and read["size"] == (2, 3)
    assert [type(n) for n in read["numpy"]] == [type(n) for n in numbers] and read["numpy"] == numbers


@pytest.mark.parity
def test_an_archive_packed_again_with_compression(tmp_path, rng):
    value = {"a": torch.from_numpy(rng.integers(0, 9, 500))}
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(saved(tmp_path / "w.pt", value)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert equal(torchfile.read(packed), value)


# Attacks. A pickle is put together from parts, each of which leaves one value on the stack.


def plain(value):
    return pickle.dumps(value, 2)[2:-1]


def group(*parts):
    return b"(" + b"".join(parts) + b"t"


def named(name):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(name, *parts):
    return named(name) + group(*parts) + b"R"


def storage(kind="torch.FloatStorage", key="0", numel=4):
    return group(plain("storage"), named(kind), plain(key), plain("cpu"), plain(numel)) + b"Q"


def tensor(size=(4,), stride=(1,), offset=0, flat=None):
    ordered = call("collections.OrderedDict")
    parts = (flat or storage(), plain(offset), plain(size), plain(stride), plain(False), ordered)
    return call("torch._utils._rebuild_tensor_v2", *parts)


def weights(part):
    """A whole pickle: {"w": part}."""
    return b"\x80\x02}" + plain("w") + part + b"s."


FOUR = np.arange(4, dtype=np.float32).tobytes()


def archive(path, content, entries=(("data/0", FOUR),), root="archive", compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
        warnings.simplefilter("ignore")  # the standard library warns of the duplicate names that are wanted here
        for name, value in (("data.pkl", content), ("byteorder", b"little"), ("version", b"3\n"), *entries):
            file.writestr(f"{root}/{name}", value)
    return path


def refusal(path):
    """The line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        torchfile.read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < len(str(path)) + 300
    return line


@pytest.mark.parity
def test_the_parts_of_the_attacks_are_sound(tmp_path):
    for part in (tensor(), call("torch._utils._rebuild_parameter", tensor(), plain(True), call("collections.OrderedDict"))):
        file = archive(tmp_path / "w.pt", weights(part))
        assert np.array_equal(torchfile.read(file)["w"], [0, 1, 2, 3])
        assert torch.equal(torch.load(file, weights_only=True)["w"], torch.arange(4.0))


class Reduced:
    """Pickled as the call of a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def stacked(module, name):
    return b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"


def payloads(mark):
    """Pickles that make the file `mark` where they are executed."""
    touch = plain(f"touch '{mark}'")
    line = plain(f"open({str(mark)!r}, 'w').close()")
    evil = call("builtins.eval", line)
    system = call("builtins.getattr", call("builtins.__import__", plain("os")), plain("system"))
    return {
        "os": weights(call("os.system", touch)),
        "posix": weights(call("posix.system", touch)),
        "subprocess": weights(call("subprocess.call", plain(["touch", str(mark)]))),
        "eval": weights(evil),
        "exec": weights(call("builtins.exec", line)),
        "python 2": weights(call("__builtin__.eval", line)),
        "getattr": weights(system + group(touch) + b"R"),
        "dotted": weights(stacked("os", "path.os.system") + group(touch) + b"R").replace(b"\x80\x02", b"\x80\x04", 1),
        "reduce 2": pickle.dumps({"w": Reduced(os.system, (f"touch '{mark}'",))}, 2),
        "reduce 4": pickle.dumps({"w": Reduced(exec, (f"open({str(mark)!r}, 'w').close()",))}, 4),
        "method": pickle.dumps({"w": Reduced(Path.touch, (mark,))}, 4),
        "state": weights(call("collections.OrderedDict") + b"}" + plain("a") + evil + b"sb"),
        "argument": weights(call("collections.OrderedDict", evil)),
        "key": weights(b"}" + evil + b"Ns"),
        "persistent": weights(evil + b"Q"),
        "inst": weights(b"(" + touch + b"ios\nsystem\n"),
        "obj": weights(b"(" + named("os.system") + touch + b"o"),
        "after": weights(tensor() + evil + b"0"),
    }


@pytest.mark.parametrize("name", payloads(Path()))
def test_no_payload_is_executed(tmp_path, name):
    mark = tmp_path / "mark"
    content = payloads(mark)[name]
    if name != "after":  # needs PyTorch's persistent ids
        with contextlib.suppress(Exception):
            pickle.loads(content)
        assert mark.exists(), "the payload is no attack"
        mark.unlink()
    line = refusal(archive(tmp_path / "w.pt", content))
    assert "which weights do not need" in line
    assert not mark.exists()


@pytest.mark.parity
def test_a_class_is_refused_by_its_name(tmp_path):
    assert "torch.nn.modules.linear.Linear" in refusal(saved(tmp_path / "w.pt", {"model": torch.nn.Linear(2, 2)}))
    assert "'__builtin__.set'" in refusal(saved(tmp_path / "w.pt", {"a": {1}}))
    assert "'pathlib" in refusal(saved(tmp_path / "w.pt", {"args": argparse.Namespace(folder=Path("a"))}))


def test_a_namespace_stays_data(tmp_path):
    """Attributes that would change a true object are entries like others."""
    state = b"}" + b"".join(plain(key) + plain(1) + b"s" for key in ("__class__", "data", "__getitem__", "__dict__", "keys"))
    content = weights(named("argparse.Namespace") + b")\x81" + state + b"b")
    args = torchfile.read(archive(tmp_path / "w.pt", content))["w"]
    assert type(args) is UserDict and set(args) == {"__class__", "data", "__getitem__", "__dict__", "keys"} and args["data"] == 1


DEEP = 50_000
PICKLES = {
    "dotted name of an allowed global": (stacked("collections", "OrderedDict.fromkeys"), "which weights do not need"),
    "dotted name, joined otherwise": (stacked("torch", "_utils._rebuild_tensor_v2"), "which weights do not need"),
    "global without a name": (b"K\1K\1\x93", "malformed"),
    "EXT1": (b"\x82\1", "EXT1"),
    "EXT2": (b"\x83\1\1", "EXT2"),
    "EXT4": (b"\x84\1\1\1\1", "EXT4"),
    "PERSID": (b"P0\n", "PERSID"),
    "text": (b"S'\\q'\n", "malformed"),
    "NEXT_BUFFER": (b"\x97", "NEXT_BUFFER"),
    "BYTEARRAY8": (b"\x96" + b"\xff" * 7 + b"\x7f", "malformed"),
    "BINUNICODE8": (b"\x8d" + b"\xff" * 8, "malformed"),
    "text beyond the end": (b"X\xff\xff\xff\x7fa", "malformed"),
    "unknown opcode": (b"\xff", "malformed"),
    "empty stack": (b"RRRR", "malformed"),
    "no mark": (b"t", "malformed"),
    "unset memo": (b"h\x50", "malformed"),
    "items for a number": (b"K\1K\1a", "malformed"),
    "entries for a list": (b"]K\1K\1s", "malformed"),
    "odd entries": (b"}(K\1K\1K\1u", "malformed"),
    "call of text": (plain("os.system") + group(plain("true")) + b"R", "malformed"),
    "call of a number": (b"K\1)R", "malformed"),
    "call without a tuple": (named("collections.OrderedDict") + b"]R", "malformed"),
    "call of a type": (call("torch.float32"), "malformed"),
    "too many arguments": (call("collections.OrderedDict", plain(1)), "malformed"),
    "state of a list": (b"]}b", "malformed"),
    "state that is no dictionary": (named("argparse.Namespace") + b")\x81]b", "malformed"),
    "tuple as a key": (b"}" + plain((1, 2)) + b"Ns", "keys"),
    "deep tuple as a key": (b"})" + b"\x85" * DEEP + b"Ns", "keys"),
    "long integer as a key": (b"}" + plain(2**63) + b"Ns", "keys"),
    "deep list": (b"]" * DEEP + b"a" * (DEEP - 1), "contains itself"),
    "deep tuple": (b")" + b"\x85" * DEEP, "contains itself"),
    "list of itself": (b"]q\1h\1a", "contains itself"),
    "dictionary of itself": (b"}q\1" + plain("a") + b"h\1s", "contains itself"),
    "namespace of itself": (named("argparse.Namespace") + b")\x81q\1}" + plain("a") + b"h\1sb", "contains itself"),
    "a billion values": (group(b"]q\1", *[b"](" + b"h\1" * 30 + b"eq\1"] * 12), "contains itself"),
    "storage of no known kind": (storage("torch.float32"), "unknown kind"),
    "storage by another name": (group(plain("module"), named("torch.FloatStorage"), *map(plain, ("0", "cpu", 4))) + b"Q", "unknown kind"),
    "storage whose key is a tuple": (storage(key=("0",)), "unknown kind"),
    "storage id that is a number": (b"K\1Q", "unknown kind"),
    "missing storage": (storage(key="7"), "'7' is missing"),
    "storage outside the folder": (storage(key="../byteorder"), "is missing"),
    "storage too large": (storage(numel=5), "another size"),
    "storage too small": (storage(numel=3), "another size"),
    "storage negative": (storage(numel=-4), "another size"),
    "storage of halves": (storage("torch.LongStorage", "odd", 1), "ends within a number"),
    "storage of no booleans": (storage("torch.BoolStorage", numel=16), "booleans"),
    "tensor without a storage": (tensor(flat=plain("0")), "without a storage"),
    "tensor of a tensor": (tensor(flat=tensor(size=(2, 2), stride=(2, 1))), "without a storage"),
    "tensor too large": (tensor(size=(5,)), "reaches number 4"),
    "tensor beyond by offset": (tensor(offset=1), "reaches number 4"),
    "tensor beyond by stride": (tensor(size=(2,), stride=(4,)), "reaches number 4"),
    "tensor of huge size": (tensor(size=(2**62,)), "beyond all files"),
    "tensor whose size overflows": (tensor(size=(2**33, 2**33), stride=(0, 0)), "over 16 GiB"),
    "tensor whose bytes overflow": (tensor(size=(2**32,), stride=(2**32,)), "reaches number"),
    "tensor of negative size": (tensor(size=(-1,)), "negative"),
    "tensor of negative stride": (tensor(stride=(-1,), offset=3), "negative"),
    "tensor of negative offset": (tensor(size=(1,), offset=-1), "negative"),
    "tensor of fractional size": (tensor(size=(1.5,)), "negative"),
    "tensor of boolean size": (tensor(size=(True,)), "negative"),
    "tensor of too many sides": (tensor(size=(1,) * 65, stride=(1,) * 65), "without a shape"),
    "tensor with a stride missing": (tensor(size=(2, 2)), "without a shape"),
    "tensor whose size is a list": (tensor(size=[4]), "without a shape"),
    "empty tensor beyond numpy": (tensor(size=(0, 2**34, 2**34), stride=(1, 1, 1)), "malformed"),
    "expansion": (tensor(size=(2**25,), stride=(0,)), "repeat one storage"),
    "expansion in parts": (b"](" + b"".join(tensor(size=(2**20,), stride=(0,)) for _ in range(17)) + b"e", "repeat one storage"),
    "numpy object": (call("numpy.dtype", plain("O8"), plain(False), plain(True)), "not plain numbers"),
    "numpy scalar too long": (
        call("numpy.core.multiarray.scalar", plain("f4"), call("_codecs.encode", plain("12345"), plain("latin1"))),
        "size",
    ),
    "numpy big-endian": (
        call("numpy.dtype", plain("f4"), plain(False), plain(True)) + group(plain(3), plain(">"), b"N", b"N", b"N") + b"b",
        "malformed",
    ),
    "numpy array": (named("numpy.core.multiarray._reconstruct"), "which weights do not need"),
    "long text encoded": (call("_codecs.encode", plain("a" * 100), plain("latin1")), "malformed"),
    "another encoding": (call("_codecs.encode", plain("a"), plain("idna")), "malformed"),
    "device": (call("torch.device", plain("cpu\n" * 100)), "unknown device"),
    "size of a list": (call("torch.Size", plain([1])), "without numbers"),
    "name over two lines": (stacked("a\nb", "c\r\x1b[0m"), "which weights do not need"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_hostile_pickles_are_refused_in_one_line(tmp_path, case):
    part, words = PICKLES[case]
    file = archive(tmp_path / "w.pt", weights(part), [("data/0", FOUR), ("data/odd", b"12345")])
    assert words in refusal(file)


@pytest.mark.parametrize("step", [b"\x85", b"]a", b"q\0"], ids=["nested", "lists", "remembered"])
def test_a_pickle_of_far_more_steps_than_its_tensors_need(tmp_path, step):
    """Megabytes of them would take half a minute."""
    start = b"]" if b"a" in step else b")"
    file = archive(tmp_path / "w.pt", weights(start + step * 300_000), [("data/0", FOUR)])
    assert "far more than its tensors need" in refusal(file)


@pytest.mark.parity
def test_a_model_with_its_optimizer_needs_about_half_of_the_steps_allowed(tmp_path, monkeypatch):
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(20)])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    file = saved(tmp_path / "w.pt", {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
    monkeypatch.setattr(torchfile, "STEPS", 0)
    monkeypatch.setattr(torchfile, "STEPS_EACH", 36)
    assert torchfile.read(file).keys() == {"state_dict", "optimizer"}


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x02", b"\x80\x02}", b"." * 3, weights(tensor())[:-1]], ids=repr)
def test_a_pickle_that_ends_early(tmp_path, content):
    assert "malformed" in refusal(archive(tmp_path / "w.pt", content))


def test_a_forged_memo_index_takes_no_memory(tmp_path):
    content = weights(group(b"K\1r\xff\xff\xff\xff", b"K\2r\xff\xff\xff\x7f"))
    assert torchfile.read(archive(tmp_path / "w.pt", content)) == {"w": (1, 2)}


@pytest.mark.parity
@pytest.mark.parametrize("value", [[1], torch.ones(2), 3, {1: 2}], ids=str)
def test_what_is_no_dictionary_of_names(tmp_path, value):
    assert "no dictionary of names" in refusal(saved(tmp_path / "w.pt", value))


# The archive.


@pytest.mark.parity
def test_other_kinds_of_file_are_told_apart(tmp_path):
    file = tmp_path / "w.pt"
    assert "weights_only=True" in refusal(saved(file, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False))
    assert "TorchScript" in refusal(archive(file, weights(tensor()), [("constants.pkl", b""), ("data/0", FOUR)]))
    assert "TorchScript" in refusal(archive(file, weights(tensor()), [("code/__torch__.py", b"")]))
    assert "0 PyTorch checkpoints" in refusal(archive(file, b"", root="a/b"))
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    assert "0 PyTorch checkpoints" in refusal(tmp_path / "w.npz")
    for content in (b"", b"PK", b"hello", bytes(600), pickle.dumps({})):
        file.write_bytes(content)
        assert "is not a PyTorch checkpoint" in refusal(file)
    assert "no such file" in refusal(tmp_path / "none.pt")
    assert "is a folder and no file" in refusal(tmp_path)
    file.write_bytes(b"a" * 257 + b"ustar" + b"a" * 300)
    assert "weights_only=True" in refusal(file)


def test_two_checkpoints_in_one_file(tmp_path):
    with zipfile.ZipFile(archive(tmp_path / "w.pt", weights(tensor())), "a") as file:
        file.writestr("other/data.pkl", weights(tensor()))
    assert "2 PyTorch checkpoints" in refusal(tmp_path / "w.pt")


def test_duplicate_names(tmp_path):
    assert "two entries of one name" in refusal(archive(tmp_path / "w.pt", weights(tensor()), [("data/0", FOUR)] * 2))


def test_big_endian(tmp_path):
    file = tmp_path / "w.pt"
    archive(file, weights(tensor()))
    file.write_bytes(file.read_bytes().replace(b"byteorder", b"byteOrder"))
    with zipfile.ZipFile(file, "a") as changed:
        changed.writestr("archive/byteorder", b"big")
    assert "big-endian" in refusal(file)


@pytest.mark.parity
def test_a_wrong_byte_in_a_storage_or_the_pickle(tmp_path):
    file = saved(tmp_path / "w.pt", {"name": torch.arange(100.0)})
    content = file.read_bytes()
    for part in (torch.arange(100.0).numpy().tobytes(), b"name", b"little"):
        at = content.index(part)
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert "a checksum in it is wrong" in refusal(file)


@pytest.mark.parity
def test_cut_off_anywhere(tmp_path):
    file = saved(tmp_path / "w.pt", {"name": torch.arange(100.0)})
    content = file.read_bytes()
    for end in (*range(0, len(content), 97), *range(len(content) - 200, len(content))):
        file.write_bytes(content[:end])
        assert ("is not a PyTorch checkpoint" if end < 4 else "damaged or cut off") in refusal(file)


def test_bombs(tmp_path, monkeypatch):
    file = tmp_path / "w.pt"
    zeros = [("data/0", bytes(10_000_000))]
    content = weights(storage("torch.ByteStorage", numel=10_000_000))
    assert "claims 10000000 bytes from" in refusal(archive(file, content, zeros, compression=zipfile.ZIP_DEFLATED))
    assert "compressed in an unknown way" in refusal(archive(file, content, compression=zipfile.ZIP_BZIP2))
    for limit, value, words in (("LIMIT", 2**20, "claim over"), ("PICKLE", 20, "its pickle is larger"), ("ENTRIES", 3, "holds 4 entries")):
        with monkeypatch.context() as patch:
            patch.setattr(torchfile, limit, value)
            assert words in refusal(archive(file, content, zeros))


def test_claims_of_the_directory_are_checked_against_the_file(tmp_path):
    file = tmp_path / "w.pt"
    archive(file, weights(tensor()))
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\1\2")  # the last entry of the directory: the storage
    for packed, unpacked, words in ((2**31, 2**31, "claim more than the file's"), (16, 2**31, "from 16"), (2**31, 16, f"from {2**31}")):
        struct.pack_into("<II", content, at + 20, packed, unpacked)
        file.write_bytes(content)
        assert words in refusal(file)
    struct.pack_into("<II", content, at + 20, 16, 16)
    struct.pack_into("<H", content, at + 8, 1)
    file.write_bytes(content)
    assert "encrypted" in refusal(file)


def test_entries_that_overlap(tmp_path):
    """Many names for the same bytes make much out of a small file."""
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("archive/data.pkl", bytes(10_000))
        for i in range(5):
            twin = copy.copy(file.filelist[0])
            twin.filename = f"archive/data/{i}"
            file.filelist.append(twin)
    assert "claim more than the file's" in refusal(tmp_path / "w.pt")


# Damage at random: what comes back is what was saved, or a refusal.


@pytest.mark.parity
def test_flipped_bits(tmp_path, rng):
    value = {"a": torch.rand(4, 5).T, "b": torch.ones(3, dtype=torch.bfloat16), "args": argparse.Namespace(lr=0.5), "n": np.float64(2)}
    file = saved(tmp_path / "w.pt", value)
    content = np.frombuffer(file.read_bytes(), np.uint8)
    # What an archive consists of but for the padding between its entries.
    places = np.flatnonzero(content != ord("Z"))
    refused = 0
    for _ in range(600):
        damaged = content.copy()
        damaged[rng.choice(places, rng.integers(1, 4))] ^= np.uint8(1 << rng.integers(8))
        file.write_bytes(damaged.tobytes())
        try:
            read = torchfile.read(file)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert same(read["a"], value["a"]) and same(read["b"], value["b"]) and read["args"] == {"lr": 0.5} and read["n"] == 2
    assert refused > 200


def test_pickles_of_random_opcodes(tmp_path, rng):
    """With good checksums: nothing but data or a refusal comes of any pickle."""
    parts = [
        b"(",
        b"t",
        b"}",
        b"]",
        b")",
        b"\x85",
        b"\x86",
        b"\x87",
        b"a",
        b"e",
        b"s",
        b"u",
        b"R",
        b"\x81",
        b"b",
        b"Q",
        b"0",
        b"\x93",
        b"\x94",
    ]
    parts += [b"N", b"\x88", b"K\0", b"K\1", b"q\0", b"q\1", b"h\0", b"h\1", plain("a"), plain("0"), plain(""), plain(2.5), plain((4,))]
    parts += [named(name) for name in (*torchfile._CALLS, "torch.FloatStorage", "torch.float32")] + [tensor(), storage(), plain("latin1")]
    outcomes = set()
    for i in range(2500):
        content = weights(b"".join(parts[k] for k in rng.integers(0, len(parts), rng.integers(1, 12))))
        if i % 2:
            damaged = bytearray(weights(call("torch.Size", plain((1, 2)), tensor()) if i % 4 == 1 else tensor()))
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(2, len(damaged))] = rng.integers(256)
            content = bytes(damaged)
        try:
            outcomes.add(type(torchfile.read(archive(tmp_path / "w.pt", content)).get("w")).__name__)
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert (
        {"refused", "ndarray"}
        <= outcomes
        <= {"refused", "ndarray", "dict", "list", "tuple", "str", "int", "float", "bool", "NoneType", "UserDict"}
    )
