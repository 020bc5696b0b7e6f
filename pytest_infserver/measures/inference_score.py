"""The fixture ``inference_score``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.launcher.operations.load_target import load_target
from pytest_infserver.load.baselines.files import FOLDER, Baselines
from pytest_infserver.reporting.record.measures import SCORES, note

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.settings import Settings

_FIGURE = "value"


class InferenceScore:
    """Records figures of a test; see `__call__`."""

    def __init__(self, item: pytest.Item, server: InferenceServer | None, settings: Settings) -> None:
        """Record nothing yet.

        Args:
            item: The test.
            server: Its server, if it has one.
            settings: What the user said.
        """
        self._item = item
        self._server = server
        self._settings = settings

    def __call__(
        self,
        name: str,
        value: float,
        *,
        min: float | None = None,
        max: float | None = None,
        tolerance: float | None = None,
        server: InferenceServer | None = None,
    ) -> None:
        """Record a figure, such as what an evaluation has come to, beside its limits and its baseline.

        Args:
            name: What it is called.
            value: The figure.
            min: It must not be less.
            max: It must not be more.
            tolerance: It must not be farther from its baseline, where there is one.
            server: Whose it is; the test's server if None.

        Raises:
            AssertionError: It does not keep a limit, or the baseline that is required is missing.
            BaselineError: The file of the baseline is none, or cannot be written.
        """
        __tracebackhide__ = True
        number = float(value)
        who = server or self._server
        baselines, what = self._baselines(who), f"score-{name}"
        if self._settings.load_save and math.isfinite(number):
            baselines.save(what, name, [{_FIGURE: number}], any_machine=True)
        found = None if self._settings.load_compare == "off" else baselines.load(what, any_machine=True)
        before = None if found is None else found.runs[0].get(_FIGURE)
        told = {
            "name": name,
            "value": _told(number),
            "min": _told(min),
            "max": _told(max),
            "baseline": before,
            "server": None if who is None else who.name,
        }
        if told["value"] is not None:
            note(self._item, SCORES, told, {f"score_{name}": number})
        problems = [] if math.isfinite(number) else ["it is no finite number"]
        if min is not None and not number >= min:
            problems.append(f"it must be at least {min:g}")
        if max is not None and not number <= max:
            problems.append(f"it must be at most {max:g}")
        if before is not None and tolerance is not None and not abs(number - before) <= tolerance:
            problems.append(f"it must be {before:g} as in the baseline, to within {tolerance:g}")
        if before is None and self._settings.load_compare == "require":
            problems.append(f"there is no baseline {baselines.path(what, any_machine=True).name}")
        if problems:
            of = "" if who is None else f" of {who.name}"
            raise AssertionError(f"{name}{of} is {number:g}: {', '.join(problems)}")

    def _baselines(self, server: InferenceServer | None) -> Baselines:
        folder = self._item.config.rootpath / FOLDER
        if server is None:
            return Baselines(folder, "run", {})
        target = load_target(server, lambda: "", list)
        return Baselines(folder, target.name, target.identity, target.engine)


def _told(value: float | None) -> float | None:
    """Return a number as reports take it: none of a library's types, nor one that JSON does not know."""
    return None if value is None or not math.isfinite(value) else float(value)
