"""Which class stands for which tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infserver.launcher.profiling.profilers.amd import Amd
from pytest_infserver.launcher.profiling.profilers.nsys import Nsys
from pytest_infserver.launcher.profiling.profilers.py_spy import PySpy
from pytest_infserver.launcher.profiling.profilers.pytorch import PyTorch

if TYPE_CHECKING:
    from pytest_infserver.launcher.profiling.profiler import Profiler

TOOLS: dict[str, type[Profiler]] = {tool.name: tool for tool in (Nsys, PyTorch, Amd, PySpy)}
