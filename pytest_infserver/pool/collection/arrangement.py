"""In which order the tests of a run stand: put together by server first, and then as anybody else orders them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.compat import must_stay, somebody_orders, sorted_by_parameters, unsorted
from pytest_infserver.pool.collection.grouping import Unit, grouped, units_of
from pytest_infserver.pool.collection.items import FIXTURE, will_run
from pytest_infserver.pool.collection.order import Rearranged
from pytest_infserver.pool.collection.setup_phase import setup_may_skip

if TYPE_CHECKING:
    from pytest_infserver.pool.collection.choice import Choice
    from pytest_infserver.settings import Settings


class Arrangement:
    """What the plugin does with the order of one run's tests.

    Attributes:
        is_ours: Whether the tests stand as the plugin has put them; else they run exactly as they stand.
    """

    def __init__(self, choice: Choice, settings: Settings) -> None:
        """Move nothing yet.

        Args:
            choice: Which test runs on which servers.
            settings: What the user said.
        """
        self._choice = choice
        self._settings = settings
        self._units: list[Unit] = []
        self._others_first = False
        self.is_ours = False

    @contextlib.contextmanager
    def put_together(self, config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
        """Put the tests of each server together, before anybody else orders them, which happens inside.

        Args:
            config: pytest's configuration.
            items: The tests as they were collected; they are moved in place.
        """
        if self._settings.order != "source":
            # As without this plugin: our own parameter moves nothing.
            with unsorted(items, FIXTURE):
                items[:] = sorted_by_parameters(items)
            if not must_stay(config, items):
                self._others_first = (
                    self._settings.prelaunch and not setup_may_skip(config) and any(map(self._boots, items))
                )
                self._group(items)
        with unsorted(items):
            yield

    def stands(self, config: pytest.Config, items: Sequence[pytest.Item]) -> None:
        """Note in which order the tests are going to run.

        Args:
            config: pytest's configuration.
            items: Those that are left.
        """
        left = set(items)
        self._units = [Unit(unit.servers, [test for test in unit.tests if test in left]) for unit in self._units]
        self._units = [unit for unit in self._units if unit.tests]
        as_put = [test for unit in self._units for test in unit.tests]
        self.is_ours = as_put == list(items) and not somebody_orders(config, items)

    def rearranged(self, items: list[pytest.Item]) -> Rearranged[pytest.Item] | None:
        """Return what moves the tests that need no server to where one is started, or None if nothing is to move."""
        if not self.is_ours or not self._others_first:
            return None
        return Rearranged(items, [(unit.servers, unit.tests) for unit in self._units])

    def _group(self, items: list[pytest.Item]) -> None:
        if self._others_first or len(self._choice.candidates) > 1:
            self._units = grouped(units_of(items, self._choice.servers), others_first=self._others_first)
            items[:] = [item for unit in self._units for item in unit.tests]

    def _boots(self, item: pytest.Item) -> bool:
        names = self._choice.servers(item)
        return any(self._choice.all_configs[name].url is None for name in names) and will_run(item)
