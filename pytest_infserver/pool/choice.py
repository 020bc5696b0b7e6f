"""On which servers each collected test runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.pool.items import (
    SEVERAL,
    Unmatched,
    is_of_unittest,
    markers,
    needs,
    parameter,
    unittest_skip,
    uses_fixture,
    uses_several,
)
from pytest_infserver.selection import (
    PROFILE,
    Candidate,
    MarkerError,
    explain,
    is_exclusive,
    needed_names,
    select,
    wanted_profiler,
)

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig

NO_CONFIGURATION = """\
this test needs an inference server, and none is configured. Give one in one of these ways:
  pytest --infserver-config servers.yaml      a YAML file that names servers (or ini: infserver_config = servers.yaml)
  pytest --infserver-backend llamacpp --infserver-model builtin:tiny      one server, started for this run
  pytest --infserver-url http://127.0.0.1:8000      a server that runs already"""

LOOKED_FOR = """
pytest took {rootdir} for rootdir and {inifile} for its ini file. It looks for them beside each path that stands behind
an option which it does not know yet: write a path outside of the project with '=', as in --infserver-output-dir=PATH"""
OF_UNITTEST = (
    "{test} is a method of a unittest.TestCase, which cannot be parametrised over several servers ({names}):"
    ' name one by @pytest.mark.infserver("{first}") on the method or class, keep one with --infserver-server NAME,'
    " or write a plain test function that takes 'inference_server'"
)
TOO_LATE = (
    "{test} asks for 'inference_server' only while it runs (getfixturevalue, a lazy fixture, a step of pytest-bdd),"
    " when it can no longer be parametrised over several servers ({names}): have it run on each by"
    ' @pytest.mark.usefixtures("inference_server"), name one by @pytest.mark.infserver("{first}"), or keep one with'
    " --infserver-server NAME"
)
NO_NEEDS = f'\'{SEVERAL}\' gives the servers that @pytest.mark.infserver_needs("a", "b") names: add that mark'


class Choice:
    """What the marks on tests and the configured servers come to.

    Attributes:
        configs: The servers by name.
        candidates: The same, as far as marks look at them.
    """

    def __init__(
        self,
        configs: Mapping[str, ServerConfig],
        candidates: Sequence[Candidate],
        strict: bool,
        looked_for: str = "",
    ) -> None:
        """Begin.

        Args:
            configs: The servers by name.
            candidates: The same, as far as marks look at them.
            strict: Whether a test that no server fits fails instead of being skipped.
            looked_for: Where a configuration was looked for, for those who miss theirs.
        """
        self._no_configuration = NO_CONFIGURATION + looked_for
        self.configs = configs
        self.candidates = list(candidates)
        self._strict = strict
        self._refusals: dict[str, str] = {}

    def parameters(self, marks: Sequence[pytest.Mark]) -> list[object]:
        """Return what a test with these marks is parametrised with.

        Raises:
            MarkerError: A mark has arguments that have no meaning.
        """
        names: list[object] = [candidate.name for candidate in select(marks, self.candidates)]
        if names:
            return names
        reason = explain(marks, self.candidates)
        skip = [] if self._strict else [pytest.mark.skip(reason=reason)]
        return [pytest.param(Unmatched(reason), id="no-server", marks=skip)]

    def choose(self, items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
        """Apply the marks that could not count at parametrisation: on single parameters and on unittest methods.

        Returns:
            The tests to keep, and those to leave out because they run on other servers.
        """
        kept: list[pytest.Item] = []
        left_out: list[pytest.Item] = []
        for item in items:
            fits = not uses_fixture(item) or not self.candidates or self._fits(item)
            (kept if fits else left_out).append(item)
            if uses_several(item):
                self._check_needs(item)
            self._check_profiler(item)
        return kept, left_out

    def refusal(self, item: pytest.Item) -> str | None:
        """Return why a test cannot run at all, or None."""
        return self._refusals.get(item.nodeid)

    def servers(self, item: pytest.Item) -> tuple[str, ...]:
        """Return the servers that a test uses, of those that are configured."""
        if item.nodeid in self._refusals:
            return ()
        own = self._parametrised(item) if uses_fixture(item) else None
        names = [] if own is None else [own]
        return tuple(dict.fromkeys([*names, *self.needed(item)]))

    def needed(self, item: pytest.Item) -> list[str]:
        """Return the servers that a test names to have them together."""
        if item.nodeid in self._refusals or not uses_several(item):
            return []
        return needed_names(needs(item), self.candidates)[0]

    def exclusive(self, item: pytest.Item) -> bool:
        """Tell whether a test wants its servers alone, and may stop them."""
        return is_exclusive(markers(item))

    def undisturbed(self, item: pytest.Item) -> bool:
        """Tell whether nobody else's requests are wanted, as in a profile."""
        return self.profiler(item) is not None

    def profiler(self, item: pytest.Item) -> str | None:
        """Return the profiler that a test asks for, "" for the configured one, or None."""
        if item.nodeid in self._refusals or not (uses_fixture(item) or uses_several(item)):
            return None
        return wanted_profiler(item.iter_markers(PROFILE))

    def refuse(self, item: pytest.Item, reason: str) -> None:
        """Let a test fail in its setup, without a server."""
        self._refusals[item.nodeid] = reason

    def named(self, name: object, item: pytest.Item | None) -> str:
        """Return the server for the fixture's parameter, or for the running test if it has none."""
        if isinstance(name, Unmatched):
            pytest.fail(name.reason, pytrace=False)
        known = ", ".join(self.configs)
        if name is not None and (not isinstance(name, str) or name not in self.configs):
            pytest.fail(f"no server is called {name!r}; configured: {known or 'none'}", pytrace=False)
        if not self.candidates:
            pytest.fail(self._no_configuration, pytrace=False)
        only = str(name) if name is not None else self.only(item)
        if only is None:
            form = OF_UNITTEST if is_of_unittest(item) else TOO_LATE
            test = "a test" if item is None else item.nodeid
            pytest.fail(form.format(test=test, names=known, first=next(iter(self.configs))), pytrace=False)
        return only

    def only(self, item: pytest.Item | None) -> str | None:
        """Return the one server that fits a test which is not parametrised, or None."""
        marks = [] if item is None else markers(item)
        try:
            chosen = select(marks, self.candidates)
        except MarkerError:
            return None
        return chosen[0].name if len(chosen) == 1 else None

    def _parametrised(self, item: pytest.Item) -> str | None:
        name = parameter(item)
        if name is None:
            return self.only(item)
        return name if isinstance(name, str) and name in self.configs else None

    def _fits(self, item: pytest.Item) -> bool:
        skipped = unittest_skip(item)
        if skipped is not None:
            item.add_marker(pytest.mark.skip(reason=skipped))
        marks, name = markers(item), parameter(item)
        try:
            names = [candidate.name for candidate in select(marks, self.candidates)]
        except MarkerError as error:
            self._refusals[item.nodeid] = str(error)
            return True
        if not names and not isinstance(name, Unmatched):
            self._turn_away(item, explain(marks, self.candidates))
        # A server that is not configured is left in: its error is better than its absence.
        return not names or not isinstance(name, str) or name in names or name not in self.configs

    def _check_needs(self, item: pytest.Item) -> None:
        marks = needs(item)
        try:
            _, missing = needed_names(marks, self.candidates)
        except MarkerError as error:
            self._refusals[item.nodeid] = str(error)
            return
        if not self.candidates:
            self._refusals[item.nodeid] = self._no_configuration
        elif not marks:
            self._refusals[item.nodeid] = NO_NEEDS
        elif missing:
            self._turn_away(item, missing)

    def _check_profiler(self, item: pytest.Item) -> None:
        try:
            self.profiler(item)
        except MarkerError as error:
            self._refusals[item.nodeid] = str(error)

    def _turn_away(self, item: pytest.Item, reason: str) -> None:
        if self._strict:
            self._refusals[item.nodeid] = reason
        else:
            item.add_marker(pytest.mark.skip(reason=reason))
