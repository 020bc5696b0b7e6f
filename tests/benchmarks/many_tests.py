"""What the plugin costs a suite of 20,000 tests of which one uses a server."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FAKE_ENGINE = Path(__file__).resolve().parents[1] / "fake_engine.py"
MODULES = 100
MODULE = "import pytest\n" + "".join(f"def test_{number}(): pass\n" for number in range(100))
MODULE += "@pytest.mark.parametrize('number', range(100))\ndef test_numbers(number): pass\n"
ROUNDS = 3


def write_project(folder: Path) -> None:
    for number in range(MODULES):
        (folder / f"test_{number:03}.py").write_text(MODULE)
    (folder / "test_server.py").write_text("def test_server(inference_server): pass\n")
    command = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}"]
    (folder / "servers.yaml").write_text(f"backend: command\nlaunch_command: {command}\n")


def seconds(folder: Path, *arguments: str) -> float:
    """Return how long a run takes, as pytest says."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, check=True)
    found = re.search(r"passed.* in ([0-9.]+)s", done.stdout.splitlines()[-1])
    assert found is not None, done.stdout
    return float(found[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        for workers in ((), ("-n2",)):
            for _ in range(ROUNDS):
                without = seconds(folder, "-p", "no:infserver", "--ignore=test_server.py", *workers)
                beside = seconds(folder, "--infserver-config=servers.yaml", *workers)
                shown = " ".join(workers) or "alone"
                print(
                    f"{shown}: {without:.2f} s without, {beside:.2f} s with it (+{beside / without - 1:.0%})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
