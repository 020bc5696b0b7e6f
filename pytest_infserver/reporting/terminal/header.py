"""The line at the top of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.pool.collection.selection import Candidate
    from pytest_infserver.settings import Settings


def header_lines(settings: Settings, candidates: list[Candidate], debug: bool) -> list[str]:
    """Return which servers this run has and where they come from; nothing if none is configured."""
    shard = "" if settings.shard is None else f"; shard {settings.shard}"
    if not candidates:
        return [f"infserver: no server{shard}"] if shard else []
    source = ", ".join(file.name for file in settings.config_files) or _urls(settings) or "command line"
    servers = ", ".join(f"{one.name} ({one.backend})" for one in candidates)
    where = f"; on the Ray cluster {settings.cluster}" if settings.cluster is not None else ""
    # There the nodes look at their own GPUs.
    mode = "" if not debug else "; debug mode" if where else _debug_mode()
    return [f"infserver: {source}: {servers}{where}{mode}{shard}"]


def _urls(settings: Settings) -> str:
    return clean(settings.url or " ".join(f"{name}={url}" for name, url in settings.urls.items()))


def _debug_mode() -> str:
    from pytest_infserver.system.gpus import NoTelemetry, read_gpus

    try:
        read_gpus()
    except NoTelemetry as reason:
        return f"; debug mode (GPU memory is not checked: {reason})"
    return "; debug mode"
