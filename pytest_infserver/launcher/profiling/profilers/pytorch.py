"""PyTorch's profiler inside the engine, by its endpoints: vLLM and SGLang, and whatever names `torch_endpoints`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_infserver.errors import ConfigError, ProfileError
from pytest_infserver.launcher.profiling.endpoints import ProfileEndpoints
from pytest_infserver.launcher.profiling.engine_requests import given_flag, post, start_settings
from pytest_infserver.launcher.profiling.profiler import Place, Profiler, Waiting
from pytest_infserver.launcher.profiling.traces import discard_if_empty, held_open
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.disk.files import move_file
from pytest_infserver.system.disk.folders import make_output_folder

_START_LIMIT = 60.0
_SETTLE = 0.5
"""Seconds for which no file must have changed: some engines answer before they have written all of them."""


class PyTorch(Profiler):
    """PyTorch's profiler."""

    name = "pytorch"
    at_launch = True

    def check(self) -> None:
        """Make sure that the backend has the endpoints and the installed engine the settings."""
        super().check()
        endpoints = self._endpoints()
        flag = given_flag(self, endpoints)
        if flag is not None:
            raise self.error(f"{flag} is set by pytest-infserver; leave it out of 'config:' or do not profile")
        name = next((name for name in self._setup("FOLDER")[1] if name in self.server.env_vars), None)
        if name is not None:
            raise self.error(f"{name} is set by pytest-infserver; leave it out of 'env_vars:' or do not profile")

    def env_vars(self, place: Place) -> Mapping[str, str]:
        """Return the variables with which the engine is told where its traces go."""
        return self._setup(self._spool(place))[1]

    def flags(self, place: Place) -> Sequence[str]:
        """Return the flags with which the engine is told where its traces go."""
        return self._setup(self._spool(place))[0]

    def begin(self, target: Path, place: Place | None, waiting: Waiting, *, whole_life: bool) -> Mapping[str, Any]:
        """Ask the engine to begin."""
        assert place is not None
        spool = Path(self._spool(place))
        make_output_folder(spool.parent, spool.name)
        endpoints = self._endpoints()
        # What an earlier profile has written too late.
        late = [str(path) for path in _files(spool)]
        post(self, endpoints.start, endpoints.body(str(spool), self._options()), waiting.at_most(_START_LIMIT))
        return {"late": late}

    def end(self, target: Path, place: Place | None, running: Mapping[str, Any], waiting: Waiting) -> bytes:
        """Ask the engine to stop, and move what it has written to the folder of this profile."""
        assert place is not None
        spool = Path(self._spool(place))
        problem = waiting.pointless()
        if problem is not None:
            raise self.error(f"{problem}: the engine writes its trace when it is asked to")
        begin = time.monotonic()
        late = set(map(Path, running["late"]))
        try:
            post(self, self._endpoints().stop, None, waiting)
        except ProfileError:
            # SGLang has stopped by itself after this number of steps.
            if "num_steps" not in self._options() or not _files(spool) - late:
                raise
        for file in self._written(spool, late, begin + waiting.limit, waiting):
            place_of_file = target / file.relative_to(spool)
            make_output_folder(target, *place_of_file.relative_to(target).parts[:-1])
            move_file(file, place_of_file)
        discard_if_empty(spool)
        return b""

    # The inside.

    def _endpoints(self) -> ProfileEndpoints:
        endpoints = asked(self.server).torch_endpoints
        if endpoints is None:
            raise self.error(
                f"backend '{self.server.backend_name}' has no endpoints for it; py-spy and nsys work with every"
                " server, and a backend of your own says by its attribute 'torch_endpoints' how it is asked"
            )
        return endpoints

    def _setup(self, folder: str) -> tuple[Sequence[str], Mapping[str, str]]:
        return start_settings(self, self._endpoints(), folder, self._options())

    def _options(self) -> dict[str, Any]:
        from pytest_infserver.config.yaml_source import parse_scalar

        options = {}
        for word in self.settings.args:
            name, equals, text = word.partition("=")
            if not equals or name.startswith("-"):
                raise self.error(
                    f"its 'args:' are settings of the engine's profiler such as with_stack=true, not {word!r}"
                )
            try:
                options[name] = parse_scalar(text, "profile.args")
            except ConfigError as error:
                raise self.error(f"{word!r} in 'args:': {error}") from None
        return options

    def _spool(self, place: Place) -> str:
        # Beside the traces: they are large, and moved from here.
        return str(self.server.profile_dir / f".{place.session}")

    def _written(self, spool: Path, late: set[Path], deadline: float, waiting: Waiting) -> list[Path]:
        """Return the files of this profile when nobody writes to them any more."""
        before: dict[Path, tuple[int, int]] = {}
        unchanged = time.monotonic()
        while True:
            found = {path: _stamp(path) for path in _files(spool) - late}
            now = time.monotonic()
            if found != before:
                before, unchanged = found, now
            settled = bool(found) and now - unchanged >= _SETTLE
            if settled and not held_open(found, self.server.process_tree()):
                return sorted(found)
            problem = waiting.pointless()
            if problem is not None or now > deadline:
                what = "it has written no trace" if not found else "it still writes its traces"
                why = f"after {waiting.limit:g} s" if problem is None else f"and {problem}"
                raise self.error(f"{what} {why}{f'; it is below {spool}' if found else ''}")
            time.sleep(0.05)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
