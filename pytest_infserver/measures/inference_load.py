"""The fixture ``inference_load``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.load.baselines.files import FOLDER
from pytest_infserver.load.running import LoadInterrupted
from pytest_infserver.reporting.record.measures import LOADS, note, note_interrupted

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.load.baselines.comparison import Verdict
    from pytest_infserver.load.results import LoadResult
    from pytest_infserver.settings import Settings

_TIMES = ("ttft", "itl", "tpot", "e2e")
_RATES = ("requests_per_second", "output_tokens_per_second", "goodput", "failed")


class InferenceLoad:
    """Sends loads to servers of a test; see `__call__`."""

    def __init__(self, item: pytest.Item, server: InferenceServer, settings: Settings) -> None:
        """Send nothing yet.

        Args:
            item: The test.
            server: Its server.
            settings: What the user said.
        """
        self._item = item
        self._server = server
        self._settings = settings
        self._count = 0

    def __call__(self, *, server: InferenceServer | None = None, **workload: Any) -> LoadResult:
        """Send a load, and return what it has shown, which stands in the reports of the run, too.

        Args:
            server: The server; that of the test if None.
            **workload: As for `InferenceServer.load`.
        """
        __tracebackhide__ = True
        try:
            result = (server or self._server).load(**workload)
        except LoadInterrupted as interrupt:
            note_interrupted(self._item, interrupt.result.as_dict())
            raise
        found = result.as_dict()
        self._count += 1
        note(self._item, LOADS, found, _properties(found, "load" if self._count == 1 else f"load{self._count}"))

        def told(verdict: Verdict) -> None:
            found["comparison"] = verdict.as_dict()

        assert result.reference is not None
        return dataclasses.replace(
            result,
            reference=dataclasses.replace(
                result.reference,
                baselines=dataclasses.replace(result.reference.baselines, folder=self._item.config.rootpath / FOLDER),
                saves=self._settings.load_save,
                compares=self._settings.load_compare != "off",
                required=self._settings.load_compare == "require",
                told=told,
            ),
        )


def _properties(found: dict[str, Any], prefix: str) -> dict[str, object]:
    times = {f"{prefix}_{name}_{part}": found[name][part] for name in _TIMES for part in ("p50", "p99")}
    rates = {f"{prefix}_{name}": found[name] for name in _RATES}
    return {name: value for name, value in {**times, **rates}.items() if value is not None}
