"""Ways to keep a standardised volume."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def cache(args: argparse.Namespace) -> tuple[str, Any]:
    """Size and reading time of a real standardised volume, in formats that notice damage."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    from brainseg_jax.data import sample
    from brainseg_jax.data.preprocess import spec, standardize

    volume = standardize(sample.template()[0], spec("default")).image
    lines = ["| format | MB | read, ms (median) |", "|---|---|---|"]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "volume")
        ways: dict[str, Callable[[], Any]] = {}
        for name, save in (("npz", np.savez), ("npz, compressed", np.savez_compressed)):
            save(f"{file}_{name}.npz", image=volume)
            ways[name] = lambda name=name: np.load(f"{file}_{name}.npz")["image"]
        for name, options in (("ArrayRecord", "group_size:1,uncompressed"), ("ArrayRecord, zstd", "group_size:1,zstd:1")):
            writer = ArrayRecordWriter(f"{file}_{name}.npz", options)
            writer.write(volume.tobytes())
            writer.close()

            def from_record(name: str = name) -> np.ndarray:
                record = ArrayRecordReader(f"{file}_{name}.npz", options="readahead_buffer_size:0").read([0])[0]
                return np.frombuffer(record, np.uint8).reshape(volume.shape)

            ways[name] = from_record
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(10 * args.turns):
            for name, read in ways.items():
                began = time.perf_counter()
                assert read().shape == volume.shape
                times[name].append(1e3 * (time.perf_counter() - began))
        for name in ways:
            size = Path(f"{file}_{name}.npz").stat().st_size / 1e6
            results.append({"format": name, "megabytes": size, "milliseconds": times[name]})
            lines.append(f"| {name} | {size:.1f} | {statistics.median(times[name]):.1f} |")
    return "\n".join([*lines, "", "The embedded template, standardised, uint8 192³; files in the page cache."]), results
