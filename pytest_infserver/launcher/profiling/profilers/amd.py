"""AMD's profilers: ``rocprofv3``, and the old ``rocprof`` where only that exists. They profile a whole life.

Facts from the script of rocprofv3 (ROCm 6 and 7): it sets LD_PRELOAD and ROCP_* and then becomes the server, whose
exit writes the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_infserver.launcher.profiling.profiler import Place, Profiler, Waiting, engine_command

_ROCM = ["/opt/rocm/bin"]
_OURS = {"-d", "--output-directory", "-o", "--output-file", "--"}
_SELECTS = re.compile(r"--\S*-trace|--(?:pmc|input|kernel-trace|advanced-thread-trace|att)|-[rsi]")
"""Options of rocprofv3 that say what is collected: without one it collects nothing, or refuses --stats."""


class Amd(Profiler):
    """rocprofv3 or rocprof."""

    name = "amd"
    at_launch = True
    from_launch = True
    parts = False
    loads_itself = True

    @cached_property
    def binary(self) -> str:
        """The profiler's command."""
        return self.find_binary("rocprofv3", "rocprof", hint="It comes with ROCm.", beside=_ROCM)

    @property
    def _is_old(self) -> bool:
        return Path(self.binary).resolve().name in ("rocprof", "rpl_run.sh") or Path(self.binary).name == "rocprof"

    @property
    def has_engine_below(self) -> bool:  # type: ignore[override]
        """Whether it is the old one, which has a script wait for the server and then sums up."""
        return self._is_old

    def check(self) -> None:
        """Make sure that it is there."""
        super().check()
        if self.settings.on_demand:
            raise self.error("it can profile a server's whole life only: leave out 'on_demand: true'")
        for word in self.settings.args:
            if word.partition("=")[0] in _OURS:
                raise self.error(f"{word} is set by pytest-infserver; the traces go below 'output_dir'")
        self.binary  # noqa: B018

    def wrap(self, argv: Sequence[str], place: Place) -> list[str]:
        """Return the profiler's command around the server's."""
        args = self.settings.args
        if self._is_old:
            # It takes no folder, and no "--" before the command, which a shell of its reads once more.
            words = args or ("--stats",)
            command = [re.sub(r'(["$`\\])', r"\\\1", word) for word in engine_command(argv, place)]
            return [self.binary, "-o", f"{place.target}/results.csv", *words, *command]
        if not any(_SELECTS.fullmatch(word.partition("=")[0]) for word in args):
            args = ("--runtime-trace", *args)
        if not any(word.partition("=")[0] in ("-f", "--output-format") for word in args):
            # Its own default is a database that no viewer on the web opens.
            args = (*args, "--output-format", "pftrace", "csv")
        return [self.binary, *args, "-d", place.target, "--", *argv]

    def begin(self, target: Path, place: Place | None, waiting: Waiting, *, whole_life: bool) -> Mapping[str, Any]:
        """Do nothing: it has begun with the launch."""
        return {}

    def end(self, target: Path, place: Place | None, running: Mapping[str, Any], waiting: Waiting) -> bytes:
        """Return what there is of it: the server's end has written the files."""
        return b""
