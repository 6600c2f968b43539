"""PyTorch, MONAI and einops, for tests of parity. Without them modules of tests still import, and tests marked `parity` are skipped."""

import os
import pkgutil
from importlib.util import find_spec
from typing import Any

INSTALLED = all(find_spec(package) for package in ("torch", "monai", "einops"))


class Absent:
    """What stands where a library is not: a name in a module, a base class, an argument, but of no use within a test."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return self._used(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> "Absent":
        return self._used(f"{self._name}()")

    def __repr__(self) -> str:
        return self._name  # part of a test's name, which has to be the same in all workers

    def __mro_entries__(self, _: tuple) -> tuple:
        return ()

    def _used(self, name: str) -> "Absent":
        if "PYTEST_CURRENT_TEST" in os.environ:
            raise ModuleNotFoundError(f"{name} is used by a test without @pytest.mark.parity")
        return Absent(name)


def peer(name: str) -> Any:
    """A module, or a name in one, `peer("monai.losses:DiceLoss")`; what stands for it where these libraries, or its own, are missing."""
    there = INSTALLED and find_spec(name.partition(":")[0].partition(".")[0])
    return pkgutil.resolve_name(name) if there else Absent(name)
