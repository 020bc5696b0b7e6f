"""On which servers each collected test runs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.config.model import BACKENDS
from pytest_infserver.config.needs import check_needs, with_needs
from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.pool.collection.items import (
    FIXTURE,
    SEVERAL,
    WAYS,
    Unmatched,
    is_of_unittest,
    markers,
    marks_of_parameters,
    needs,
    parameter,
    unittest_skip,
    uses_fixture,
    uses_several,
)
from pytest_infserver.pool.collection.selection import (
    PROFILE,
    Candidate,
    Known,
    MarkerError,
    check_names,
    exclude_one_another,
    explain,
    is_exclusive,
    needed_names,
    select,
    settings_in,
    wanted_profiler,
)
from pytest_infserver.pool.collection.variants import Variant, changed, merged, normal, resolved

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


@dataclass(frozen=True)
class Recipe:
    """Of what a variant is made.

    Attributes:
        base: The configured server; None for one that only marks describe.
        settings: What is replaced, or all of it.
    """

    base: str | None
    settings: Mapping[str, Any]


class Choice:
    """What the marks on tests and the configured servers come to.

    Attributes:
        configs: The servers by name.
        candidates: The same, as far as marks look at them.
        recipes: Of what the variants are made.
    """

    def __init__(
        self,
        configs: Mapping[str, ServerConfig],
        candidates: Sequence[Candidate],
        strict: bool,
        looked_for: str = "",
        known: Known | None = None,
        config: pytest.Config | None = None,
        make: Callable[[Mapping[str, Any], str], ServerConfig] | None = None,
    ) -> None:
        """Begin.

        Args:
            configs: The servers by name.
            candidates: The same, as far as marks look at them.
            strict: Whether a test that no server fits fails instead of being skipped.
            looked_for: Where a configuration was looked for, for those who miss theirs.
            known: What names in marks may stand for.
            config: pytest's configuration, for settings that are made from it.
            make: Makes the configuration of a server that no file names, from its settings and where they stand.
        """
        self._config = config
        self._make = make or _no_server
        self.variants: dict[str, ServerConfig] = {}
        self.recipes: dict[str, Recipe] = {}
        self._of_marks: dict[tuple[int, ...], tuple[Sequence[pytest.Mark], dict[str, Any]]] = {}
        self._of_values: dict[tuple[int, int], tuple[Variant, dict[str, Any], dict[str, Any]]] = {}
        self._named_for: dict[tuple[str, int], tuple[Mapping[str, Any], str]] = {}
        self._bases: dict[str, str] = {}
        self._values: dict[pytest.Item, object] = {}
        self._known = known or Known()
        self._no_configuration = NO_CONFIGURATION + looked_for
        self.configs = configs
        self.candidates = list(candidates)
        self._strict = strict
        self._refusals: dict[str, str] = {}

    @property
    def all_configs(self) -> Mapping[str, ServerConfig]:
        """The servers by name, with the variants that tests have asked for so far."""
        return ChainMap(self.variants, dict(self.configs)) if self.variants else self.configs

    def declares_server(self, marks: Sequence[pytest.Mark]) -> bool:
        """Return whether marks describe a server of their own, which needs no configuration."""
        settings = {key for one in settings_in(marks) for key in normal(one)}
        is_named = any(mark.name == "infserver" and mark.args for mark in marks)
        is_alone = "launch_command" in settings and not self.candidates
        return ("backend" in settings or is_alone) and not (is_named and self.candidates)

    def variant(self, name: str, settings: Mapping[str, Any], place: str) -> str:
        """Return the name of a configured server with some settings replaced.

        Args:
            name: The configured server.
            settings: What is replaced.
            place: Where the user has written that.

        Raises:
            MarkerError: A setting is unknown or wrong.
        """
        if not settings:
            return name
        found = self._known_name(name, settings)
        if found is not None:
            return found
        try:
            config = changed(self.configs[name], settings, place)
        except ConfigError as error:
            raise MarkerError(str(error)) from None
        if config.name != name:
            self._note(config, place)
            self._bases[config.name] = name
            self.recipes[config.name] = Recipe(name, settings)
        self._named_for[name, id(settings)] = settings, config.name
        return config.name

    def own_server(self, settings: Mapping[str, Any], place: str) -> str:
        """Return the name of a server that only marks describe.

        Args:
            settings: Its settings, with its backend.
            place: Where the user has written that.

        Raises:
            MarkerError: A setting is unknown or wrong.
        """
        found = self._known_name("", settings)
        if found is not None:
            return found
        try:
            config = self._make(_own(settings), place)
        except ConfigError as error:
            raise MarkerError(str(error)) from None
        self._note(config, place)
        self.recipes[config.name] = Recipe(None, settings)
        self._named_for["", id(settings)] = settings, config.name
        return config.name

    def _known_name(self, base: str, settings: Mapping[str, Any]) -> str | None:
        """Return what the same settings, and not others like them, have made of a server before."""
        known, name = self._named_for.get((base, id(settings)), (None, None))
        return name if known is settings else None

    def remade(self, name: str, base: str | None, settings: Mapping[str, Any]) -> ServerConfig | None:
        """Return a variant as an earlier run has made it; None if that cannot be, or is another one now.

        Args:
            name: What it was called.
            base: See `Recipe`.
            settings: Likewise.
        """
        try:
            config = self._make(_own(settings), name) if base is None else changed(self.configs[base], settings, name)
        except (InferenceServerError, KeyError):
            return None
        is_same = config.name == name and "name" not in settings
        # The pool has been told of these backends.
        known = {*BACKENDS, *(one.backend for one in self.configs.values())}
        return config if is_same and config.backend in known else None

    def _note(self, config: ServerConfig, place: str) -> None:
        known = self.all_configs.get(config.name)
        if known is not None and known != config:
            raise MarkerError(f"{place}: two servers with different settings are called '{config.name}'")
        try:
            check_needs({**self.all_configs, config.name: config})
        except ConfigError as error:
            raise MarkerError(f"{place}: {error}") from None
        self.variants[config.name] = config

    def use_variants(self, items: Sequence[pytest.Item]) -> None:
        """Let tests run on the variants that their marks, also those of single parameters, and parameters name."""
        for item in items:
            if not uses_fixture(item):
                continue
            callspec: Any = getattr(item, "callspec", None)
            try:
                if callspec is None or FIXTURE not in callspec.params:
                    self._only(item)
                    continue
                # What the test was parametrised with: this is done again when others have added marks.
                value = self._values.setdefault(item, callspec.params[FIXTURE])
                if isinstance(value, (str, Variant)):
                    callspec.params[FIXTURE] = self._named_variant(item, value)
            except MarkerError as error:
                self._refusals[item.nodeid] = str(error)

    def _named_variant(self, item: pytest.Item, value: str | Variant) -> str:
        settings = self._settings(markers(item))
        if isinstance(value, str):
            if value in self.variants and value not in self._bases:
                return self._known_name("", settings) or self.own_server(settings, _place_of(item))
            base = self._base_for(item, self._bases.get(value, value))
            if not settings or base not in self.configs:
                return base
            # Where it stands takes longer to tell than all the rest.
            return self._known_name(base, settings) or self.variant(base, settings, _place_of(item))
        place = _place_of(item)
        settings = self._settings_of(value, settings)
        if value.name is None and "backend" in settings:
            return self.own_server(settings, place)
        name = value.name or self.only(item)
        if name is None or name not in self.configs:
            known = ", ".join(self.configs) or "none"
            raise MarkerError(f"{place}: variant({name!r}): no server is called so; configured: {known}")
        return self.variant(name, settings, place)

    def _base_for(self, item: pytest.Item, base: str) -> str:
        """Return the server of a test whose parameter has a mark that names another one than its function's marks."""
        own = marks_of_parameters(item)
        marks = markers(item)
        if not own or base not in self.configs:
            return base
        chosen = [one.name for one in select(marks, self.candidates)]
        rest = [mark for mark in marks if not any(mark is one for one in own)]
        offered = [one.name for one in select(rest, self.candidates)]
        if base in chosen or set(chosen) & set(offered) or base not in offered[:1] or len(chosen) != 1:
            return base
        return chosen[0]

    def _settings(self, marks: Sequence[pytest.Mark]) -> dict[str, Any]:
        # Many tests have the same marks, those of one function, and each of them is asked for several times.
        key = tuple(map(id, marks))
        if key not in self._of_marks:
            self._of_marks[key] = marks, self._merged(settings_in(marks))
        return self._of_marks[key][1]

    def _settings_of(self, value: Variant, settings: dict[str, Any]) -> dict[str, Any]:
        key = id(value), id(settings)
        if key not in self._of_values:
            self._of_values[key] = value, settings, self._merged([value.settings, settings])
        return self._of_values[key][2]

    def _merged(self, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        try:
            return resolved(merged(settings), self._config)
        except ConfigError as error:
            raise MarkerError(str(error)) from None

    def parameters(self, marks: Sequence[pytest.Mark], place: str = "infserver(...)") -> list[object]:
        """Return what a test with these marks is parametrised with.

        Args:
            marks: The marks, the closest first.
            place: Where they stand, for errors.

        Raises:
            MarkerError: A mark has arguments that have no meaning, or names nothing that there is.
        """
        self.check(marks)
        settings = self._settings(marks)
        if self.declares_server(marks):
            return [pytest.param(self.own_server(settings, place), id=str(settings.get("backend", "command")))]
        names = [candidate.name for candidate in select(marks, self.candidates)]
        if names and settings:
            return [pytest.param(self.variant(name, settings, place), id=name) for name in names]
        if names:
            return list(names)
        if exclude_one_another(marks, self.candidates):
            raise MarkerError(explain(marks, self.candidates))
        reason = explain(marks, self.candidates)
        skip = [] if self._strict else [pytest.mark.skip(reason=reason)]
        return [pytest.param(Unmatched(reason), id="no-server", marks=skip)]

    def check(self, marks: Sequence[pytest.Mark]) -> None:
        """Make sure that the names in marks stand for something.

        Raises:
            MarkerError: One does not, or a mark has arguments that have no meaning.
        """
        if self.candidates:
            check_names(marks, self._known)

    def choose(self, items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
        """Apply the marks that could not count at parametrisation: on single parameters and on unittest methods.

        Returns:
            The tests to keep, and those to leave out because they run on other servers.
        """
        kept: list[pytest.Item] = []
        left_out: list[pytest.Item] = []
        for item in items:
            uses_one, several = uses_fixture(item), uses_several(item)
            fits = not uses_one or not self.candidates or self._fits(item)
            (kept if fits else left_out).append(item)
            if several:
                self._check_needs(item)
            if uses_one or several:
                self._check_profiler(item)
        return kept, left_out

    def is_bystander(self, item: pytest.Item) -> bool:
        """Return whether a test has no way to come by a server."""
        return WAYS.isdisjoint(getattr(item, "fixturenames", ())) and self.refusal(item) is None

    def refusal(self, item: pytest.Item) -> str | None:
        """Return why a test cannot run at all, or None."""
        # A node id is made anew each time, and most runs refuse no test.
        return self._refusals.get(item.nodeid) if self._refusals else None

    def servers(self, item: pytest.Item) -> tuple[str, ...]:
        """Return the servers that a test uses, of those that are configured."""
        if self.refusal(item) is not None:
            return ()
        own = self._parametrised(item) if uses_fixture(item) else None
        names = [] if own is None else [own]
        return with_needs(dict.fromkeys([*names, *self.needed(item)]), self.all_configs)

    def needed(self, item: pytest.Item) -> list[str]:
        """Return the servers that a test names to have them together."""
        if not uses_several(item) or self.refusal(item) is not None:
            return []
        return needed_names(needs(item), self.candidates)[0]

    def exclusive(self, item: pytest.Item) -> bool:
        """Return whether a test wants its servers alone, and may stop them."""
        return is_exclusive(markers(item))

    def undisturbed(self, item: pytest.Item) -> bool:
        """Return whether nobody else's requests are wanted, as in a profile."""
        return self.profiler(item) is not None

    def profiler(self, item: pytest.Item) -> str | None:
        """Return the profiler that a test asks for, "" for the configured one, or None."""
        if not (uses_fixture(item) or uses_several(item)) or self.refusal(item) is not None:
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
        if name is not None and (not isinstance(name, str) or name not in self.all_configs):
            pytest.fail(f"no server is called {name!r}; configured: {known or 'none'}", pytrace=False)
        if not self.candidates and name is None and (item is None or not self.declares_server(markers(item))):
            pytest.fail(self._no_configuration, pytrace=False)
        only = str(name) if name is not None else self.only(item)
        if only is None:
            form = OF_UNITTEST if is_of_unittest(item) else TOO_LATE
            test = "a test" if item is None else item.nodeid
            pytest.fail(form.format(test=test, names=known, first=next(iter(self.configs))), pytrace=False)
        return only

    def only(self, item: pytest.Item | None) -> str | None:
        """Return the one server that fits a test which is not parametrised, or None."""
        try:
            return self._only(item)
        except MarkerError:
            return None

    def _only(self, item: pytest.Item | None) -> str | None:
        marks = [] if item is None else markers(item)
        place = "infserver(...)" if item is None else _place_of(item)
        if self.declares_server(marks):
            return self.own_server(self._settings(marks), place)
        chosen = select(marks, self.candidates)
        return self.variant(chosen[0].name, self._settings(marks), place) if len(chosen) == 1 else None

    def _parametrised(self, item: pytest.Item) -> str | None:
        name = parameter(item)
        if name is None:
            return self.only(item)
        return name if isinstance(name, str) and name in self.all_configs else None

    def _fits(self, item: pytest.Item) -> bool:
        skipped = unittest_skip(item)
        if skipped is not None:
            item.add_marker(pytest.mark.skip(reason=skipped))
        marks, name = markers(item), parameter(item)
        if isinstance(name, str) and name in self.variants and name not in self._bases:
            return True
        try:
            self.check(marks)
            names = [candidate.name for candidate in select(marks, self.candidates)]
        except MarkerError as error:
            self._refusals[item.nodeid] = str(error)
            return True
        if not names and not isinstance(name, Unmatched):
            self._turn_away(item, explain(marks, self.candidates))
        # A server that is not configured is left in: its error is better than its absence.
        base = self._bases.get(str(name), name)
        return not names or not isinstance(base, str) or base in names or base not in self.configs

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


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"backend": "command", **settings}


def _no_server(settings: Mapping[str, Any], place: str) -> ServerConfig:
    raise ConfigError(f"{place}: no server can be made here")


def _place_of(item: pytest.Item) -> str:
    path, line, _ = item.location
    return path if line is None else f"{path}:{line + 1}"
