"""The files of a grid."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_infserver.conformance.report.grid import Grid
from pytest_infserver.conformance.report.page import render_page
from pytest_infserver.reporting.paths import from_here
from pytest_infserver.system.disk.files import write_whole
from pytest_infserver.system.disk.folders import make_output_folder

FILES = ("conformance.json", "conformance.html")


def write_grid(grid: Grid, folder: Path, level: str) -> list[str]:
    """Write the files of a grid, and return them as one would type them here.

    Args:
        grid: The grid.
        folder: Where they go; it is made if need be.
        level: The level that was asked for.

    Raises:
        OSError: They cannot be written.
    """
    folder = folder.absolute()
    make_output_folder(folder)
    data = grid.as_data(level)
    texts = (json.dumps(data, indent=1, ensure_ascii=False), render_page(grid, data))
    for name, text in zip(FILES, texts, strict=True):
        write_whole(folder / name, text.encode("utf-8", "replace"))
    return [from_here(folder / name) for name in FILES]
