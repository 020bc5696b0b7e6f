"""What keeps a profiler from working that loads itself into the server's process: another one that does so, too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

_WRAPPERS = frozenset(
    {"nsys", "ncu", "nvprof", "rocprof", "rocprofv2", "rocprofv3", "rocprof-sys-run", "omnitrace-run"}
)
_TRANSPARENT = frozenset({"env", "numactl", "taskset", "nice", "ionice", "chrt", "sudo", "setsid", "stdbuf", "timeout"})
"""What starts the command behind it: ``env A=1 nsys profile engine``."""
_INJECTIONS = (
    "CUDA_INJECTION64_PATH",
    "NVTX_INJECTION64_PATH",
    "ROCP_TOOL_LIBRARIES",
    "ROCP_TOOL_LIB",
    "HSA_TOOLS_LIB",
    "KOKKOS_TOOLS_LIBS",
)
"""Variables by which NVIDIA's and AMD's runtimes load one library: that of a profiler."""
_PRELOADED = re.compile(
    r"rocprof|roctracer|nsight|nsys|libtoolsinjection|cupti|vtune|ittnotify|omnitrace", re.IGNORECASE
)
"""Other libraries in LD_PRELOAD, such as an allocator, do no harm."""


def _started_by(argv: Sequence[str]) -> str:
    """Return the name of the program that a command is about."""
    for word in argv:
        name = PurePath(word).name
        if name not in _TRANSPARENT and not re.match(r"-|\w+=|[\d.,-]+s?$|[A-Z][A-Z\d_]*$", word):
            return name
    return ""


def clash_of(argv: Sequence[str], env: Mapping[str, str]) -> str | None:
    """Return what is in the way of a profiler, or None.

    Args:
        argv: The server's command without the profiler.
        env: The server's environment without what the profiler adds.
    """
    started = _started_by(argv)
    if started in _WRAPPERS:
        return f"the server's command starts '{started}' already, and two profilers do not work together"
    preloaded = [
        word for word in re.split(r"[:\s]+", env.get("LD_PRELOAD", "")) if _PRELOADED.search(PurePath(word).name)
    ]
    if preloaded:
        return f"LD_PRELOAD loads {preloaded[0]}, and two profilers do not work together"
    name = next((name for name in _INJECTIONS if env.get(name)), None)
    if name is not None:
        return f"{name} is set to {env[name]}: another profiler is loaded already, as if pytest itself ran under it"
    return None
