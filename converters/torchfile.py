"""A reader of PyTorch's checkpoint files (.pt, .pth; a zip of a pickle and raw storages) without PyTorch and without executing the pickle.

The standard unpickler calls functions that a file names; and even without functions, nested tuples and forged memo indices exhaust its
memory or stack. So the few opcodes that describe data are interpreted here. A global remains a name, which is looked up among the functions
below; all sizes are checked before memory is allocated, and no function's result is larger than its arguments.
"""

import functools
import itertools
import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import open_regular

LIMIT = 2**34  # maximum bytes of all entries unpacked
PICKLE = 2**24  # bytes of the pickle; three thousand tensors with their optimizer take about one million
ENTRIES = 2**16  # files in the archive
RATIO = 100  # compressed entries may unpack to this many times their size; PyTorch itself does not compress
# Maximum steps of the pickle: a tensor with its two moments takes about 31 for each file in the archive, a logged value takes one. A second
# or two for any file.
STEPS, STEPS_EACH = 2**18, 64
DEPTH, NODES = 64, 2**20  # maximum nesting, and number of values, counted with repetition
# Limits for copies of views of one storage, e.g. tied or expanded weights, as a multiple of the storages plus bytes.
SHARES, SLACK = 8, 2**26

_ALONE = "save the weights alone, torch.save(model.state_dict(), file)"
_AGAIN = "copy or download it again"
_STORAGES = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": "<f8",
        "Float": "<f4",
        "Half": "<f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
        "Untyped": "u1",
    }.items()
}
_STORAGES["torch.storage.UntypedStorage"] = _STORAGES["torch.UntypedStorage"]
_DTYPES = {
    f"torch.{name}"
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128")
}


def read(path: Path) -> dict[str, Any]:
    """The content of a file of `torch.save`, e.g. a state dict or {"state_dict": …, "epoch": …}, as plain data in the file's order.

    Tensors, parameters and storages become read-only NumPy arrays of the saved type (bfloat16 as `ml_dtypes.bfloat16`), strided or sharing
    memory like the tensors. OrderedDict becomes dict, argparse.Namespace a `UserDict` of its attributes, torch.Size a tuple; types and
    devices become their names. Checksums of all entries used are verified. Raises InputError, naming the file and the remedy, for any other
    content.
    """
    with open_regular(path, "give a file of torch.save's") as file:
        try:
            return _checkpoint(file)
        except MemoryError:
            raise InputError(f"does not fit into memory; {_ALONE}, or use a larger machine") from None
        except RuntimeError:  # of zipfile
            raise InputError(f"is encrypted, or compressed in a way that PyTorch never does; {_AGAIN}") from None
        # Errors of zipfile for damaged archives.
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, ValueError) as error:
            fault = "a checksum in it is wrong" if "CRC" in str(error) else "is damaged or cut off"
            raise InputError(f"{fault}; {_AGAIN}") from None


def _checkpoint(file: BinaryIO) -> dict[str, Any]:
    _check_kind(file.read(512))
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        _check_entries(archive.infolist(), size)
        root = _root(archive.namelist())
        if archive.getinfo(f"{root}/data.pkl").file_size > PICKLE:
            raise InputError(f"its pickle is larger than {PICKLE >> 20} MiB; {_ALONE}")
        if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
            raise InputError("was written on a big-endian machine; load and save it again on a little-endian one")
        steps = STEPS + STEPS_EACH * len(archive.namelist())
        structure = _unpickle(archive.read(f"{root}/data.pkl"), _storages(archive, root), steps)
        _check_extent(structure, SHARES * sum(entry.file_size for entry in archive.infolist()) + SLACK)
    if not isinstance(structure, dict) or not all(isinstance(name, str) for name in structure):
        raise InputError(f"holds no dictionary of names but a {type(structure).__name__}; {_ALONE}")
    return structure


def _check_kind(head: bytes) -> None:
    if head.startswith(b"PK\3\4"):
        return
    # The magic number of old files, behind the pickle's first bytes; even older ones are tar archives.
    if b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:32] or head[257:262] == b"ustar":
        raise InputError(
            "is in PyTorch's format from before version 1.6; resave it with torch.save(torch.load(file, weights_only=True), new_file)"
        )
    raise InputError(f"is not a PyTorch checkpoint; check the path, or {_AGAIN}")


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Raises InputError for an archive that claims more than a file of `size` bytes can contain."""
    if len(entries) > ENTRIES:
        raise InputError(f"holds {len(entries)} entries, over {ENTRIES}; {_ALONE}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise InputError(f"holds two entries of one name, of which either could be meant; {_AGAIN}")
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"entry {entry.filename[:80]!r} is compressed in an unknown way; {_ALONE}")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if entry.file_size > RATIO * entry.compress_size or (stored and entry.file_size != entry.compress_size):
            raise InputError(f"entry {entry.filename[:80]!r} claims {entry.file_size} bytes from {entry.compress_size}; {_AGAIN}")
    if sum(entry.compress_size for entry in entries) > size:
        raise InputError(f"its entries claim more than the file's {size} bytes; {_AGAIN}")
    if sum(entry.file_size for entry in entries) > LIMIT:
        raise InputError(f"its entries claim over {LIMIT >> 30} GiB; {_ALONE}")


def _root(names: list[str]) -> str:
    """The root folder in the archive, which PyTorch names after the file."""
    if any(re.match(r"[^/]+/(constants\.pkl$|code/)", name) for name in names):
        raise InputError("is a TorchScript program; save its weights alone, torch.save(torch.jit.load(file).state_dict(), new_file)")
    roots = [name.partition("/")[0] for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise InputError(f"is a zip archive with {len(roots)} PyTorch checkpoints, not one; unpack it if the checkpoint is a file inside")
    return roots[0]


def _storages(archive: zipfile.ZipFile, root: str) -> Callable[[Any], np.ndarray]:
    """A function from a persistent id of the pickle to its storage, as a flat array."""
    names = set(archive.namelist())
    content = functools.cache(lambda key: archive.read(f"{root}/data/{key}"))

    @functools.cache
    def typed(kind: str, key: str) -> np.ndarray:
        dtype = _STORAGES[kind]
        if len(content(key)) % dtype.itemsize:
            raise InputError(f"storage {key[:80]!r} ends within a number; {_AGAIN}")
        array = np.frombuffer(content(key), dtype)
        if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
            raise InputError(f"storage {key[:80]!r} holds booleans other than 0 and 1; {_AGAIN}")
        return array

    def storage(identity: Any) -> np.ndarray:
        match identity:
            case (str(tag), str(kind), str(key), _, int(numel)) if tag == "storage" and kind in _STORAGES:
                if f"{root}/data/{key}" not in names:
                    raise InputError(f"storage {key[:80]!r} is missing; {_AGAIN}")
                if typed(kind, key).size != numel:
                    raise InputError(f"storage {key[:80]!r} has another size than its tensors say; {_AGAIN}")
                return typed(kind, key)
        raise _malformed("a storage of unknown kind")

    return storage


def _unpickle(pickle: bytes, storage: Callable[[Any], np.ndarray], steps: int) -> Any:
    try:
        return _run(pickle, storage, steps)
    # Malicious pickles pop from an empty stack, refer to missing memo entries, or pass wrong arguments; a bad escape in a text opcode only
    # warns.
    except (LookupError, TypeError, ValueError, OverflowError, DeprecationWarning) as error:
        raise _malformed(type(error).__name__) from None


def _run(pickle: bytes, storage: Callable[[Any], np.ndarray], steps: int) -> Any:
    """The value of a pickle with at most `steps` opcodes, each of which takes time and memory in proportion to its own bytes."""
    stack, marks, memo = [], [], {}

    def pop_marked() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for step, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if step >= steps:
            raise InputError(f"its pickle takes over {steps} steps, far more than its tensors need; {_ALONE}")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple([stack.pop() for _ in range(int(opcode.name[-1]))][::-1]))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_marked()))
            case "APPEND":
                _extend([stack.pop()], stack[-1])
            case "APPENDS":
                _extend(pop_marked(), stack[-1])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update([key, value], stack[-1])
            case "SETITEMS":
                _update(pop_marked(), stack[-1])
            case "GLOBAL":
                stack.append(_named(*argument.split(" ")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_call(name, arguments))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "STOP":
                return stack.pop()
            case name:
                raise InputError(f"its pickle uses {name}, which weights do not need; {_ALONE}")
    raise _malformed("no end")


def _extend(items: list, target: Any) -> None:
    if not isinstance(target, list):
        raise _malformed("items without a list")
    target.extend(items)


def _update(items: list, target: Any) -> None:
    if not isinstance(target, dict):
        raise _malformed("items without a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing nested tuples can overflow the stack, and comparing long integers with equal hashes can take hours.
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**63):
            raise InputError(f"has a dictionary whose keys are not names or numbers; {_ALONE}")
        target[key] = value


def _named(module: Any, name: Any) -> str:
    """The full name of a global. Raises InputError unless a checkpoint needs it."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise _malformed("a global without a name")
    full = f"{module[:80]}.{name[:80]}"
    # Pickle looks a dotted name up attribute by attribute.
    if "." in name or not (full in _CALLS or full in _STORAGES or full in _DTYPES):
        raise InputError(f"refers to {full!r}, which weights do not need; {_ALONE}")
    return full


def _call(name: Any, arguments: Any) -> Any:
    if not isinstance(name, str) or name not in _CALLS or not isinstance(arguments, tuple):
        raise _malformed("a call of what cannot be called")
    return _CALLS[name](*arguments)


def _build(target: Any, state: Any) -> None:
    match target, state:
        case UserDict(), dict():
            target.data = state  # not a copy: repeated copies of a large state would take more memory than the file
        case dict(), dict():
            pass  # the attributes of a state dict: version numbers of PyTorch's modules
        case str(), (_, str(order), *_) if order in ("<", "|"):
            pass  # the rest of a numpy type; the arrays and numbers here are little-endian anyway
        case _:
            raise _malformed("a state of what has none")


def _namespace() -> UserDict:
    return UserDict()


def _ordered_dict() -> dict:
    return {}


def _tensor(
    storage: np.ndarray, offset: int, size: tuple, stride: tuple, requires_grad: Any, hooks: Any, metadata: Any = None
) -> np.ndarray:
    """A view of a flat storage; offset and strides are in elements."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise _malformed("a tensor without a storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or not len(size) == len(stride) <= 64:
        raise _malformed("a tensor without a shape")
    if not all(type(n) is int and 0 <= n <= LIMIT for n in (offset, *size, *stride)):
        raise _malformed("a tensor whose shape, stride or offset is negative or beyond all files")
    dtype = storage.dtype
    if math.prod(size) == 0:
        return np.empty(size, dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.size:
        raise InputError(f"a tensor of shape {size} reaches number {last} of a storage of {storage.size}; {_AGAIN}")
    if math.prod(size) * dtype.itemsize > LIMIT:
        raise InputError(f"a tensor of shape {size} takes over {LIMIT >> 30} GiB; {_ALONE}")
    # As bytes, because NumPy cannot use bfloat16 as a buffer.
    steps = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, storage.view(np.uint8), offset * dtype.itemsize, steps)


def _parameter(data: np.ndarray, requires_grad: Any, hooks: Any) -> np.ndarray:
    return data


def _size(size: tuple) -> tuple:
    if not isinstance(size, tuple):
        raise _malformed("a torch.Size without numbers")
    return size


def _device(kind: str, index: int | None = None) -> str:
    if not re.fullmatch(r"[a-z]{1,16}", kind) or not (index is None or (isinstance(index, int) and 0 <= index < 2**16)):
        raise _malformed("an unknown device")
    return kind if index is None else f"{kind}:{index}"


def _numpy_dtype(name: str, align: Any = False, copy: Any = True) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"f[248]|[iu][1248]|b1", name):
        raise InputError(f"holds numpy values that are not plain numbers; {_ALONE}")
    return name


def _numpy_scalar(dtype: str, content: bytes) -> np.generic:
    kind = np.dtype(_numpy_dtype(dtype)).newbyteorder("<")
    if not isinstance(content, bytes) or len(content) != kind.itemsize:
        raise _malformed("a number of the wrong size")
    return np.frombuffer(content, kind)[0]


def _bytes(text: str, encoding: str) -> bytes:
    """The bytes of a NumPy number from older pickle protocols; longer text is refused, as encoding it repeatedly fills the memory."""
    if not isinstance(text, str) or len(text) > 8 or encoding != "latin1":
        raise _malformed("text encoded in an unknown way")
    return text.encode("latin1")


def _malformed(what: str) -> InputError:
    return InputError(f"its pickle is malformed ({what}); {_AGAIN}, or {_ALONE}")


_CALLS: dict[str, Callable] = {
    "collections.OrderedDict": _ordered_dict,
    "argparse.Namespace": _namespace,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "_codecs.encode": _bytes,
}


def _check_extent(structure: Any, room: int) -> None:
    """Raises InputError for a structure that is infinite or too large, or whose tensors take more than `room` bytes when copied."""
    level, nodes, taken = [structure], 1, 0
    for _ in range(DEPTH):
        level = list(itertools.islice(itertools.chain.from_iterable(map(_children, level)), NODES + 1))
        nodes += len(level)
        taken += sum(item.nbytes for item in level if isinstance(item, np.ndarray))
        if not level or nodes > NODES:
            break
    if level:
        raise InputError(f"contains itself, or nests or repeats values beyond all use; {_ALONE}")
    if taken > room:
        raise InputError(f"its tensors repeat one storage until they take {taken} bytes; {_ALONE}, of each tensor a .clone()")


def _children(item: Any) -> Any:
    match item:
        case dict() | UserDict():
            return item.values()
        case list() | tuple():
            return item
        case _:
            return ()
