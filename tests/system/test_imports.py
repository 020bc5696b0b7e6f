"""What is imported early, so that no file of a project is taken for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_infserver
from pytest_infserver.system.imports import NEEDED_LATER, installed_modules_first


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.usefixtures("nothing_left")
def test_every_standard_module_that_the_package_imports_is_imported_early() -> None:
    # Programs of their own, and what is left to them, import for themselves.
    apart = (
        "embedded_llamacpp",
        "option_reader.py",
        # The files of the processes that make a load, and its prompts.
        "generator.py",
        "client.py",
        "prompt_rows.py",
        "supervision",
        "node",
        "agent",
        "connection",
    )
    package = Path(pytest_infserver.__file__).parent
    files = [path for path in package.rglob("*.py") if not set(apart).intersection(path.relative_to(package).parts)]
    names = {name for path in files for name in imported(path) if name.split(".")[0] in sys.stdlib_module_names}
    code = f"import sys, pytest, _pytest.main; print([name for name in {sorted(names)} if name not in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    missing = set(ast.literal_eval(done.stdout)) - set(NEEDED_LATER) - {"multiprocessing", *sys.builtin_module_names}
    assert missing == set()


def test_the_interpreters_modules_come_first_and_the_path_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_packages = str(Path(pytest.__file__).parents[1])
    monkeypatch.setattr(sys, "path", [tmp_path, str(tmp_path), *sys.path])
    before = list(sys.path)
    with installed_modules_first(site_packages):
        assert sys.path.index(str(tmp_path)) > sys.path.index(site_packages)
    assert sys.path == before
    with installed_modules_first(site_packages):
        sys.path.append("added meanwhile")
    assert "added meanwhile" in sys.path
