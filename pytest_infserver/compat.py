"""What is used of pytest's own inside, each with the versions it was checked with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import pytest


def sorted_by_parameters(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return tests as pytest sorts them by the parameters of their session, package, module and class fixtures.

    That is ``_pytest.fixtures.reorder_items`` (pytest 8.4 to 9.2).
    """
    from _pytest.fixtures import reorder_items

    sorts = any(scope.name != "Function" for item in items for scope in _scopes(item).values())
    return list(reorder_items(items)) if sorts else list(items)


def _scopes(item: pytest.Item) -> dict[str, Any]:
    """Return the scope of each parameter of a test."""
    scopes: dict[str, Any] = getattr(getattr(item, "callspec", None), "_arg2scope", {})
    return scopes


@contextlib.contextmanager
def unsorted(items: Iterable[pytest.Item], fixture: str | None = None) -> Iterator[None]:
    """Keep pytest from sorting tests by parameters, which pulls modules and classes apart.

    It looks at ``item.callspec._arg2scope`` for that (pytest 8.4 to 9.2).

    Args:
        items: The tests.
        fixture: The only fixture whose parameters do not count; None: those of no fixture count.
    """
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for item in items:
        scopes = _scopes(item)
        names = [name for name in scopes if fixture in (None, name)]
        if names:
            changed.append((scopes, dict(scopes)))
            scopes.update((name, type(scopes[name]).Function) for name in names)
    try:
        yield
    finally:
        for scopes, before in changed:
            scopes.update(before)


def configure(config: pytest.Config) -> None:
    """Call ``pytest_configure`` of all plugins, as pytest's own ``--help`` does, by ``config._do_configure``.

    Tried with pytest 8.4 to 9.2.
    """
    config._do_configure()


def definitions_of(metafunc: pytest.Metafunc, fixture: str) -> Sequence[Any] | None:
    """Return the definitions of a fixture that a test sees, of ``metafunc._arg2fixturedefs`` (pytest 8.4 to 9.2)."""
    return metafunc._arg2fixturedefs.get(fixture)


def follow_scope(metafunc: pytest.Metafunc, fixture: str, other: str) -> None:
    """Give a session fixture of ours the scope of another one that it asks for, where a project has overridden that.

    A definition (``FixtureDef``) has its scope in ``_scope``, and a test's definitions are those that its
    ``_arg2fixturedefs`` holds, from which the order of its fixtures follows (pytest 8.4 to 9.2).

    Args:
        metafunc: The test.
        fixture: Our fixture.
        other: The other one.
    """
    known = metafunc._arg2fixturedefs
    ours, others = known.get(fixture), known.get(other)
    if not ours or not others or ours[-1].func.__module__ != "pytest_infserver.session.fixtures":
        return
    scope = others[-1]._scope
    if not scope < ours[-1]._scope:
        return
    # One for all tests that see the same one.
    copies = vars(others[-1]).setdefault("_infserver_copies", {})
    if fixture not in copies:
        copies[fixture] = copy.copy(ours[-1])
        vars(copies[fixture]).update(_scope=scope, cached_result=None, _finalizers=type(ours[-1]._finalizers)())
    known[fixture] = [*ours[:-1], copies[fixture]]
    metafunc.fixturenames.sort(key=lambda name: known[name][-1]._scope if name in known else scope, reverse=True)


def is_parametrized_by(metafunc: pytest.Metafunc, fixture: str) -> bool:
    """Return whether a test has parameters for a fixture already, as ``metafunc._calls`` says (pytest 8.4 to 9.2)."""
    return any(fixture in call.params for call in metafunc._calls)


def file_of(terminal: pytest.TerminalReporter) -> TextIO:
    """Return what pytest's terminal reporter writes to, ``terminal._tw._file`` (pytest 8.4 to 9.2)."""
    return terminal._tw._file


def end_of_begun_line(terminal: pytest.TerminalReporter) -> str:
    """Return what ends the line that pytest's terminal reporter has begun, and let it begin a new one.

    Its writer keeps that line in ``_tw._current_line``, and it flushes what it writes (pytest 8.4 to 9.2).
    """
    if not terminal._tw.width_of_current_line:
        return ""
    terminal._tw._current_line = ""
    terminal.currentfspath = None
    return "\n"


def uncaptured_output(config: pytest.Config) -> int | None:
    """Return the descriptor on which output is seen while that of tests is captured; None if it is not captured.

    In xdist's workers, which have no terminal, it is that of stderr.

    pytest captures descriptors 1 and 2, and keeps what they were: ``capturemanager._global_capturing.out`` and ``err``
    have it in ``targetfd_save`` (pytest 8.4 to 9.2).
    """
    name = "err" if hasattr(config, "workerinput") else "out"
    manager = config.pluginmanager.get_plugin("capturemanager")
    captured = getattr(getattr(manager, "_global_capturing", None), name, None)
    return getattr(captured, "targetfd_save", None)


def width_of(text: str) -> int:
    """Return the columns that a text takes, as pytest counts them in ``_pytest._io.wcwidth`` (pytest 8.4 to 9.2).

    It is negative if something in the text cannot be shown.
    """
    from _pytest._io.wcwidth import wcswidth

    return wcswidth(text)


def width_of_character(character: str) -> int:
    """Return the columns that one character takes; see `width_of`."""
    from _pytest._io.wcwidth import wcwidth

    return wcwidth(character)


_ORDERING_OPTIONS = ("stepwise", "failedfirst", "newfirst", "lf")
_ORDERING_MARKS = ("order", "dependency")
"""Those of pytest-order and pytest-dependency."""


def somebody_orders(config: pytest.Config, items: Iterable[pytest.Item]) -> bool:
    """Return whether an option, a plugin or a mark on a test orders the tests, or needs them in an order."""
    options = any(config.getoption(name, None) for name in _ORDERING_OPTIONS)
    return options or is_shuffled(config) or _is_marked(items, *_ORDERING_MARKS)


def must_stay(config: pytest.Config, items: Iterable[pytest.Item]) -> bool:
    """Return whether tests must stay where they are, because a plugin has put them there before or relies on it.

    pytest-randomly shuffles tests in the first hook of all; pytest-dependency needs them in the order of the source.
    """
    return is_shuffled(config) or ("pytest_dependency" in _plugins(config) and _is_marked(items, "dependency"))


def is_shuffled(config: pytest.Config) -> bool:
    """Return whether pytest-randomly gives the tests another order in each run."""
    return "pytest_randomly" in _plugins(config) and bool(config.getoption("randomly_reorganize", False))


def _is_marked(items: Iterable[pytest.Item], *names: str) -> bool:
    return any(mark.name in names for item in items for mark in item.iter_markers())


def _plugins(config: pytest.Config) -> set[str]:
    """Return the top-level modules of all plugins."""
    plugins = config.pluginmanager.get_plugins()
    names = (getattr(plugin, "__name__", None) or type(plugin).__module__ for plugin in plugins)
    return {str(name).partition(".")[0] for name in names}


def reruns_on_change(config: pytest.Config) -> bool:
    """Return whether this is a run inside of xdist's ``-f``, as its `WorkerFailSession` tells (xdist 3.6 to 3.8)."""
    return any(type(plugin).__name__ == "WorkerFailSession" for plugin in config.pluginmanager.get_plugins())


@contextlib.contextmanager
def between_hooks_and_fixtures(item: pytest.Item, action: Callable[[], object]) -> Iterator[None]:
    """Do something when the hooks of a test's setup have been called, and before its fixtures are made.

    The last of these hooks, pytest's own, calls ``session._setupstate.setup(item)`` for them (pytest 8.4 to 9.2).
    """
    state = item.session._setupstate
    make_fixtures = state.setup

    def setup(item: pytest.Item) -> None:
        action()
        make_fixtures(item)

    state.setup = setup  # type: ignore[method-assign]
    try:
        yield
    finally:
        del state.setup


@contextlib.contextmanager
def without_faulthandler(config: pytest.Config) -> Iterator[None]:
    """Stop the clock of ``faulthandler_timeout``, and start it anew.

    pytest starts and stops it by itself around each test, in ``_pytest.faulthandler`` (pytest 8.4 to 9.2).
    """
    seconds = float(config.getini("faulthandler_timeout") or 0) if config.pluginmanager.hasplugin("faulthandler") else 0
    if not seconds:
        yield
        return
    import faulthandler

    from _pytest.faulthandler import fault_handler_stderr_fd_key

    faulthandler.cancel_dump_traceback_later()
    try:
        yield
    finally:
        exits = False
        with contextlib.suppress(ValueError):
            # Since pytest 9.
            exits = bool(config.getini("faulthandler_exit_on_timeout"))
        faulthandler.dump_traceback_later(seconds, file=config.stash[fault_handler_stderr_fd_key], exit=exits)
