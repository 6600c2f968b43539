"""Kernels, with FLOPs and memory traffic, and collectives of a compiled GPU program, parsed from its scheduled HLO text.

A kernel's bytes are those it must read and write once, as in XLA's own cost analysis: the slices of an array that is only sliced, the
update of one that is updated in place. Loops count by their trip count, conditionals by their dearest or cheapest branch.
"""

import re
from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

import numpy as np

SIZES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all")
COLLECTIVES += ("collective-permute", "collective-broadcast")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier"}
SLICES = ("dynamic-slice", "slice", "gather")
# Prefixes of custom-call targets and their kinds. Pallas kernels have the names that their authors gave them.
PALLAS = "__gpu$xla.gpu.triton"
CALLS = {
    "__cublas$": "product",
    "__cudnn$conv": "convolution",
    "__cudnn$fmha": "attention",
    "mha_forward": "attention",
    "mha_backward": "attention",
    "mha_preprocess_backward": "fusion",  # sums of elementwise products
}


class Array(NamedTuple):
    """An array's element type and shape."""

    type: str
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return prod(self.sizes)

    @property
    def bytes(self) -> int:
        """The size in memory."""
        digits = re.sub(r"\D", "", self.type.partition("e")[0])
        return self.elements * (SIZES[self.type] if self.type in SIZES else -(-int(digits) // 8))


class Instruction(NamedTuple):
    """An HLO instruction: name, results, opcode, names of operands, and the rest of the line (attributes)."""

    name: str
    arrays: tuple[Array, ...]
    op: str
    operands: tuple[str, ...]
    rest: str

    @property
    def bytes(self) -> int:
        """The size of all results."""
        return sum(array.bytes for array in self.arrays)


Computations = dict[str, dict[str, Instruction]]  # in scheduled order


class Kernel(NamedTuple):
    """A kernel. `kind`: product, convolution, attention, fusion, or the opcode. `type`: of the first factor. `flops`: None if unknown, two
    per multiply-add. `bytes`: read and written. It runs `times` times a step."""

    kind: str
    type: str
    flops: int | None
    bytes: int
    times: int


class Collective(NamedTuple):
    """A collective. `bytes`: of the whole array that is reduced or gathered, per device. `members`: the devices of one of its groups, which
    are alike. `hidden`: the kernels between its start and its end, by name."""

    kind: str
    bytes: int
    members: tuple[int, ...]
    times: int
    asynchronous: bool
    hidden: dict[str, Kernel]


class Facts(NamedTuple):
    """Kernels and collectives of one step on each device."""

    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]

    @property
    def flops(self) -> int:
        """FLOPs of all kernels whose work is known."""
        return sum((kernel.flops or 0) * kernel.times for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        """Bytes read and written by all kernels."""
        return sum(kernel.bytes * kernel.times for kernel in self.kernels)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Kinds of kernels whose FLOPs are unknown."""
        return tuple(sorted({kernel.kind for kernel in self.kernels if kernel.flops is None}))


def facts(text: str, choose: Callable = max) -> Facts:
    """The facts of a compiled module's text. `choose`, max or min, selects the branch of a conditional by its cost.

    Raises ValueError for a loop with an unknown trip count, and for text that cannot be parsed.
    """
    computations, entry = parse(text)
    steps = [step for _, step in _run(computations, computations[entry], 1, choose)]
    return Facts(tuple(s for s in steps if isinstance(s, Kernel)), tuple(s for s in steps if isinstance(s, Collective)))


def parse(text: str) -> tuple[Computations, str]:
    """All computations by name, and the name of the entry computation."""
    computations, entry, current = {}, "", {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$", line):
            name, kind, op, rest = instruction.groups()
            inside, _, after = rest.partition(")")
            current[name] = Instruction(name, arrays(kind), op, tuple(re.findall(r"%([\w.\-]+)", inside)), after)
    if not entry:
        raise ValueError("the text is no HLO module: it has no ENTRY")
    return computations, entry


def arrays(kind: str) -> tuple[Array, ...]:
    """The arrays of an HLO type, in the order of a tuple."""
    return tuple(Array(name, tuple(_numbers(sizes))) for name, sizes in re.findall(r"([a-z]\w*)\[([\d,]*)\]", kind))


def _run(
    computations: Computations, body: dict[str, Instruction], times: int, choose: Callable, between: tuple[int, int] | None = None
) -> Iterator[tuple[str, Kernel | Collective]]:
    """Yields the kernels and collectives of a computation with the names of their lines; of the lines `between` only the kernels."""
    lines = list(body.values())
    run = lambda name, turns=1: _run(computations, computations[name], times * turns, choose)  # noqa: E731
    for at in range(*(between or (0, len(lines)))):
        line = lines[at]
        wrapped = _wrapped(computations, line)
        kind = wrapped.op.removesuffix("-start")
        if line.op in FREE or line.op.endswith(("-done", "-update")):
            continue
        if line.op == "while":
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line.rest)
            if not turns:
                raise ValueError(f"loop {line.name} has no known number of turns")
            yield from run(_called(line, "body"), int(turns[1]))
        elif line.op == "conditional":
            yield from choose([list(run(name)) for name in _branches(line)], key=_weight)
        elif line.op == "call":
            yield from run(_called(line, "to_apply"))
        elif kind in COLLECTIVES:
            if between:
                continue
            # A start that is directly followed by its end does not overlap anything.
            done = next((i for i in range(at + 1, len(lines)) if line.name in lines[i].operands), at + 1)
            hidden = {name: step for name, step in _run(computations, body, times, choose, (at + 1, done)) if isinstance(step, Kernel)}
            yield line.name, Collective(kind, _payload(body, line), _members(wrapped), times, line.op.endswith("-start"), hidden)
        elif line.op == "async-start":
            yield from run(_called(line, "calls"))
        else:
            yield line.name, _kernel(computations, body, line, times)


def _wrapped(computations: Computations, line: Instruction) -> Instruction:
    """The instruction that an async-start starts; any other instruction itself."""
    if line.op != "async-start":
        return line
    inner = [i for i in computations[_called(line, "calls")].values() if i.op not in FREE]
    return inner[0] if len(inner) == 1 else line


def _called(line: Instruction, role: str) -> str:
    return re.search(role + r"=%?([\w.\-]+)", line.rest)[1]


def _branches(line: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
    names = listed[1] if listed else " ".join(re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", line.rest))
    return re.findall(r"%?([\w.\-]+)", names)


def _weight(steps: list[tuple[str, Kernel | Collective]]) -> float:
    """The cost by which branches are compared: bytes, plus FLOPs at 200 a byte."""
    return float(sum(s.times * (s.bytes + (getattr(s, "flops", 0) or 0) / 200) for _, s in steps))


def _payload(body: dict[str, Instruction], line: Instruction) -> int:
    """Bytes of a collective's whole array: of its operands or its results, whichever are larger."""
    read = sum(body[name].bytes for name in line.operands if name in body)
    written = line.bytes - read if line.op.endswith("-start") and len(line.arrays) > len(line.operands) else line.bytes
    return max(read, written)


def _members(line: Instruction) -> tuple[int, ...]:
    """The devices of a collective's first group; of a permutation the two that are farthest apart."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line.rest):
        return tuple(_numbers(listed[1]))
    if rows := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line.rest):
        sizes = _numbers(rows[3])
        devices = np.arange(prod(sizes)).reshape(sizes).transpose(_numbers(rows[4]) if rows[4] else None)
        return tuple(devices.reshape(int(rows[1]), int(rows[2]))[0].tolist())
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line.rest):
        # A group may span a part of an axis: 'axis':(2)4 is the middle one of its factors 2 × 4 × the rest.
        parts = {name: (int(before or 1), int(part or 0)) for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[2])}
        factors: list[int] = []
        for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1]):
            before, part = parts.get(name, (1, 1))
            part = part or int(size)
            factors += [before, part, int(size) // (before * part)]
        devices = np.arange(prod(factors)).reshape(factors)
        return tuple(devices[tuple(slice(None) if i % 3 == 1 else 0 for i in range(len(factors)))].ravel().tolist())
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line.rest):
        return max((tuple(_numbers(pair)) for pair in re.findall(r"\{([\d,]+)", pairs[1])), key=lambda pair: abs(pair[0] - pair[1]))
    raise ValueError(f"{line.name}: it is not known which devices take part: {line.rest[:120]}")


def _numbers(listed: str) -> list[int]:
    return [int(n) for n in listed.split(",") if n]


def _kernel(computations: Computations, body: dict[str, Instruction], line: Instruction, times: int) -> Kernel:
    read = [body[name] for name in line.operands if name in body]
    if line.op == "fusion":
        inside = computations[_called(line, "calls")]
        dots = [inner for inner in inside.values() if inner.op == "dot"]
        kind, flops = ("product", sum(_of_dot(inside, dot) for dot in dots)) if dots else ("fusion", 0)
        factor = inside[dots[0].operands[0]] if dots else line
        return Kernel(kind, _type(factor), flops, _bytes_of_fusion(inside, line), times)
    traffic = line.bytes + sum(i.bytes for i in read)
    if line.op != "custom-call":
        if line.op in SLICES:
            traffic = 2 * line.bytes
        elif line.op == "dynamic-update-slice":
            traffic = 2 * read[1].bytes
        return Kernel(line.op, _type(line), 0, traffic, times)
    called = _name(line)
    kind = next((kind for start, kind in CALLS.items() if called.startswith(start)), called)
    count = {"product": _of_product, "convolution": _of_convolution, "attention": _of_attention, "fusion": lambda *_: 0}.get(kind)
    return Kernel(kind, _type(read[0]) if read else "", count(called, line, read) if count else None, traffic, times)


def _type(line: Instruction) -> str:
    return line.arrays[0].type if line.arrays else ""


def _name(line: Instruction) -> str:
    """The target of a custom call; for Pallas the name of the kernel."""
    called = re.search(r'custom_call_target="([^"]*)"', line.rest)[1]
    kernel = re.search(r'op_name="[^"]*?([^/"]*)/pallas_call"', line.rest)
    return kernel[1] if called == PALLAS and kernel else called


def _of_dot(inside: dict[str, Instruction], line: Instruction) -> int:
    contracted = _numbers(re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)[1])
    return 2 * line.arrays[0].elements * prod(inside[line.operands[0]].arrays[0].sizes[n] for n in contracted)


def _of_product(_: str, line: Instruction, read: list[Instruction]) -> int:
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', line.rest)[1]
    return 2 * line.arrays[0].elements * prod(read[0].arrays[0].sizes[int(n)] for n in re.findall(r"\d+", contracted))


def _of_convolution(called: str, line: Instruction, read: list[Instruction]) -> int:
    """2 × weights of the kernel × its positions, those at the padded border included."""
    kernel = re.search(r"dim_labels=\w+_(\w+)->", line.rest)[1]
    result, first, second = line.arrays[0], read[0].arrays[0], read[1].arrays[0]
    gradients = {"__cudnn$convBackwardInput": (second, first), "__cudnn$convBackwardFilter": (result, second)}
    weights, output = gradients.get(called, (second, result))
    return 2 * weights.elements * output.elements // weights.sizes[kernel.index("o")]


def _of_attention(called: str, line: Instruction, read: list[Instruction]) -> int:
    """FLOPs of 2 products forward, 5 backward, or 7 in Pallas's backward kernel, which computes the scores twice (for keys and values, and
    for queries); each has b·h·n·m·e multiply-adds. Operands begin with q, k, v [b n h e]."""
    (b, n, h, e), m = read[0].arrays[0].sizes, read[1].arrays[0].sizes[1]
    products = 7 if called == "mha_backward" else 5 if called.endswith("Backward") else 2
    return 2 * products * b * h * n * m * e


def _bytes_of_fusion(inside: dict[str, Instruction], line: Instruction) -> int:
    users: dict[str, list[Instruction]] = {}
    for inner in inside.values():
        for name in inner.operands:
            users.setdefault(name, []).append(inner)

    def read(name: str) -> int:
        """Bytes of a value that its users read."""
        total = 0
        for user in users.get(name, []):
            if user.op == "bitcast":
                total += read(user.name)
            elif user.op in SLICES and user.operands[0] == name:
                total += user.bytes
            elif not (user.op == "dynamic-update-slice" and user.operands[0] == name):
                return inside[name].bytes
        return min(total, inside[name].bytes)

    def written(root: Instruction) -> int:
        if root.op == "bitcast" and root.operands:
            return written(inside[root.operands[0]])
        if root.op == "tuple":
            return sum(written(inside[name]) for name in root.operands)
        return inside[root.operands[1]].bytes if root.op == "dynamic-update-slice" else root.bytes

    return sum(read(i.name) for i in inside.values() if i.op == "parameter") + written(list(inside.values())[-1])
