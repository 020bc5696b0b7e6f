"""What opens a trace."""

from __future__ import annotations

from pathlib import Path

_VIEWERS = (
    (".nsys-rep", "Nsight Systems, or 'nsys stats'"),
    (".speedscope.json", "https://www.speedscope.app"),
    (".pt.trace.json.gz", "https://ui.perfetto.dev"),
    (".pt.trace.json", "https://ui.perfetto.dev"),
    (".trace.json", "https://ui.perfetto.dev"),
    (".trace.json.gz", "https://ui.perfetto.dev"),
    (".pftrace", "https://ui.perfetto.dev"),
    (".svg", "a browser"),
    (".db", "ROCm Optiq, or 'rocpd convert'"),
)


def viewer_of(path: str | Path) -> str | None:
    """Return what opens a trace, in words; None for a text that anything opens."""
    name = Path(path).name
    return next((viewer for suffix, viewer in _VIEWERS if name.endswith(suffix)), None)


def with_viewer(path: str | Path) -> str:
    """Return a path, and what opens it."""
    viewer = viewer_of(path)
    return str(path) if viewer is None else f"{path} (opens in {viewer})"
