"""Stands in for SGLang's compiled kernels, which have no CPU build on PyPI: every name exists, no call works.

With it the real SGLang runs its own command line, processes, HTTP server and shutdown; the arithmetic is done by
PyTorch. What is tested through it says nothing about SGLang's kernels.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

__version__ = "0.0.0+stub"
__path__: list[str] = []


class _Stub:
    """A kernel, or a table of constants, that nobody may use."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __getattr__(self, name: str) -> _Stub:
        return _stub(self.__name__, name)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{self.__name__} is a stub: SGLang runs without its kernels here")


def _stub(owner: str, name: str) -> _Stub:
    if name.startswith("__"):
        raise AttributeError(f"'{owner}' has no attribute '{name}'")
    return _Stub(f"{owner}.{name}")


def __getattr__(name: str) -> _Stub:
    return _stub(__name__, name)


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every submodule of this package, and makes each of them a stub, too."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(f"{__name__}."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__getattr__ = lambda attribute: _stub(name, attribute)  # type: ignore[method-assign]


sys.meta_path.append(_Submodules())
