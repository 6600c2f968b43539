"""Hostile .pt files: pickles put together at random of what executes, nests, repeats and lies about sizes. Nothing of it may happen."""

from pathlib import Path
from typing import Any

import numpy as np
from trials import torchfile
from trials.bounds import tried
from trials.ledger import HELD, WRONG, Verdict
from trials.torchfile import number, tensor, text

from converters.torchfile import read

CALLED = (
    b"cos\nsystem\n",
    b"cposix\nsystem\n",
    b"csubprocess\ncall\n",
    b"cbuiltins\nexec\n",
    b"cbuiltins\neval\n",
    b"cbuiltins\ngetattr\n",
)
NAMED = (
    "os.system",
    "torch.load",
    "torch.hub.load",
    "torch.__class__",
    "numpy.core.multiarray._reconstruct",
    "collections.OrderedDict.update",
)


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """A state dict of one honest tensor and up to three entries that are not, in a file that may be packed; read within bounds."""
    file, trace = folder / "hostile.pt", folder / "executed"
    honest = np.ones((2, 3), np.float32)
    entries = [text("honest") + tensor("0", honest)]
    chosen = [int(rng.integers(len(ATTACKS))) for _ in range(rng.integers(1, 4))]
    entries += [text(f"entry{i}") + ATTACKS[attack](rng, str(trace)) for i, attack in enumerate(chosen)]
    rng.shuffle(entries)
    storages = {"0": honest.tobytes(), "1": rng.bytes(4 * int(rng.integers(0, 2**12)))}
    torchfile.write(file, b"\x80\x02}(" + b"".join(entries) + b"u.", storages, packed=rng.random() < 0.2)
    words = ", ".join(ATTACKS[attack].__name__ for attack in chosen)

    def judge(found: Any) -> Verdict:
        right = "honest" not in found or np.array_equal(found["honest"], honest)
        return Verdict(HELD, "read as data") if right else Verdict(WRONG, "the honest tensor is another one")

    verdict = tried(lambda: read(file), file.name, judge)
    if trace.exists():
        verdict = Verdict(WRONG, "was executed")
    return verdict._replace(detail=f"{words}; {verdict.detail}")


def calls(rng: np.random.Generator, trace: str) -> bytes:
    return CALLED[rng.integers(len(CALLED))] + b"(" + text(f"touch {trace}") + b"tR"


def opens(rng: np.random.Generator, trace: str) -> bytes:
    return b"cbuiltins\nopen\n(" + text(trace) + text("w") + b"tR"


def names(rng: np.random.Generator, trace: str) -> bytes:
    module, _, name = NAMED[rng.integers(len(NAMED))].rpartition(".")
    return text(module) + text(name) + b"\x93" + b"(" + text(trace) + b"tR"


def builds(rng: np.random.Generator, trace: str) -> bytes:
    return b"ccollections\nOrderedDict\n)R}(" + text("__class__") + text("x") + text("__setstate__") + text(trace) + b"ub"


def instances(rng: np.random.Generator, trace: str) -> bytes:
    return b"(" + text(f"touch {trace}") + b"ios\nsystem\n"


def nests(rng: np.random.Generator, trace: str) -> bytes:
    depth = int(2 ** rng.integers(5, 18))
    return b"(" * depth + b"t" * depth if rng.integers(2) else b"]" + b"]" * depth + b"a" * depth


def doubles(rng: np.random.Generator, trace: str) -> bytes:
    """Each tuple holds the one before it twice: a thousand levels would be more values than there are atoms."""
    put, get = (lambda i: b"r" + i.to_bytes(4, "little")), (lambda i: b"j" + i.to_bytes(4, "little"))
    steps = [put(9000)] + [get(9000 + i) + b"\x86" + put(9001 + i) for i in range(int(rng.integers(2, 1000)))]
    return b")" + b"".join(steps)


def loops(rng: np.random.Generator, trace: str) -> bytes:
    return b"]q\x63h\x63a"


def claims(rng: np.random.Generator, trace: str) -> bytes:
    """A tensor of more than its storage, or of one number repeated."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(6) + b"tQ"
    side = number(int(rng.choice([2**20, 2**31 - 1, -1, -(2**31)])))
    stride = number(int(rng.choice([0, 1, 2**30, -1])))
    rebuilt = b"(" + storage + number(0) + b"(" + side + side + b"t(" + stride + stride + b"t\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + rebuilt


def grows(rng: np.random.Generator, trace: str) -> bytes:
    return b"c_codecs\nencode\n(" + text("\xff" * int(2 ** rng.integers(3, 18))) + text("utf-16") + b"tR"


def lies(rng: np.random.Generator, trace: str) -> bytes:
    """An opcode whose length reaches beyond the file, or bytes that are none."""
    claimed = bytes(rng.integers(0, 256, 4, dtype=np.uint8))
    return bytes(rng.choice(list(b"X\x8d\x8eTB\x8a\x8b"), 1).astype(np.uint8)) + claimed + bytes(rng.integers(0, 256, 40, dtype=np.uint8))


ATTACKS = (calls, opens, names, builds, instances, nests, doubles, loops, claims, grows, lies)
