"""Options that an engine's newer versions do not have any more, or that mean something else than was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_infserver.launcher.engine.arguments import option_values
from pytest_infserver.launcher.engine.version import is_at_least


@dataclass(frozen=True)
class ChangedOption:
    """One such option.

    Attributes:
        flag: How it is written on the command line.
        advice: What to write instead; for an option that is dropped, why nothing is needed.
        since: The first version that is known not to have it; "" if none ever had it.
        dropped: Whether it is left out with a warning, because its meaning is the default now. It takes no value.
        value: It counts only with a value that matches this.
    """

    flag: str
    advice: str
    since: str = ""
    dropped: bool = False
    value: re.Pattern[str] | None = None


class OutdatedOption(ValueError):
    """A command line has an option that the engine does not have any more.

    Attributes:
        flag: The option.
    """

    def __init__(self, message: str, flag: str) -> None:
        super().__init__(message)
        self.flag = flag


def up_to_date(
    argv: Sequence[str],
    configured: Sequence[str],
    changed: Sequence[ChangedOption],
    engine: str,
    version: Callable[[], str | None],
) -> tuple[list[str], list[str]]:
    """Return a command line without options that have become the default, and a text for each one left out.

    Args:
        argv: The command line.
        configured: The part of it that comes from the settings. A subclass may launch something else: the rest is
            its own business.
        changed: What the engine has changed.
        engine: Its name.
        version: Tells the installed version, or None; it is asked only if that matters. With an unknown version
            nothing is changed: the engine itself will say what it does not know.

    Raises:
        OutdatedOption: An option has to be replaced; the message says by what.
    """
    at = _position(configured, argv)
    if at is None:
        return list(argv), []
    words, notes = list(configured), []
    for option in changed:
        # vLLM takes underscores for dashes.
        given = option_values([_normal(word) for word in words], option.flag)
        if not any(option.value is None or option.value.search(" ".join(values)) for values in given):
            continue
        installed = version()
        if installed is None or not is_at_least(installed, option.since):
            continue
        what = f"has no {option.flag}" if option.value is None else f"takes no such value for {option.flag}"
        text = f"{engine} {installed} {what}: {option.advice}"
        if not option.dropped:
            raise OutdatedOption(text, option.flag)
        words = _without(words, option.flag)
        notes.append(f"{text}; it is left out")
    return [*argv[:at], *words, *argv[at + len(configured) :]], notes


def _position(part: Sequence[str], words: Sequence[str]) -> int | None:
    """Return where in ``words`` the words of ``part`` stand together, the last such place, or None."""
    places = range(len(words) - len(part), -1, -1)
    return next((place for place in places if list(words[place : place + len(part)]) == list(part)), None)


def _normal(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word


def _without(words: Sequence[str], flag: str) -> list[str]:
    """Return the words without a flag, and without what stands behind it: it takes no value."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("-"):
            dropping = _normal(word).partition("=")[0] == flag
        if not dropping:
            kept.append(word)
    return kept
