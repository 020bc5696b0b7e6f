"""The options that an engine has, and what is wrong with the words that somebody wants to give it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pytest_infserver.launcher.engine.arguments import is_number
from pytest_infserver.system.secrets import is_secret_name

_KINDS: Mapping[str, tuple[Callable[[str], Any], str]] = {"int": (int, "a whole number"), "float": (float, "a number")}
_MAX_SHOWN = 60
_MAX_CHOICES = 12


@dataclass(frozen=True)
class KnownOption:
    """One option.

    Attributes:
        flags: Its spellings.
        values: How many words belong to it; None if that is not fixed.
        kind: ``int`` or ``float`` if each of them must be one, else "".
        choices: What it may be; () for anything.
        complaint: Says what is wrong with a value, or None if nothing is.
    """

    flags: tuple[str, ...]
    values: int | None = None
    kind: str = ""
    choices: tuple[str, ...] = ()
    complaint: Callable[[str], str | None] | None = None


@dataclass(frozen=True)
class OptionTable:
    """The options of one engine. Where it is in doubt whether the engine takes a word, it counts as taken.

    Attributes:
        engine: What the engine is called in messages.
        options: All that it has.
        abbreviations: Whether it takes the beginning of an option for the option.
        greedy: Whether what stands behind an option is its value even if it begins with a dash.
        few_places: Whether a word that belongs to no option is an error.
        with_equals: Whether ``--flag=value`` is understood.
        knows_short: Whether unknown options with one dash are errors, too.
    """

    engine: str
    options: tuple[KnownOption, ...]
    abbreviations: bool = True
    greedy: bool = False
    few_places: bool = False
    with_equals: bool = True
    knows_short: bool = False

    def mistake(self, words: Sequence[str]) -> tuple[str, str] | None:
        """Return what the engine would refuse first, as the flag and a text, or None.

        Args:
            words: The arguments that are configured.
        """
        for written, option, values in self._given(words):
            if option is None:
                return written, f"{self.engine} has no option {written}{self._nearest(written)}"
            problem = self._problem(option, values)
            if problem is not None:
                return written, f"{self.engine}: {written} {problem}"
        return None

    def _given(self, words: Sequence[str]) -> Iterator[tuple[str, KnownOption | None, list[str]]]:
        """Yield each option as it is written, which one that is, and the words that belong to it."""
        at = 0
        while at < len(words):
            written, equals, value = words[at].partition("=") if self.with_equals else (words[at], "", "")
            at += 1
            if written == "--":
                return
            if not self._is_option(written):
                continue
            option, is_known = self._find(written)
            values = [value] if equals else self._values(option, words[at:])
            at += 0 if equals else len(values)
            if option is not None or not is_known:
                yield written, option, values

    def _values(self, option: KnownOption | None, words: Sequence[str]) -> list[str]:
        """Return what of the words behind an option belongs to it."""
        if self.greedy and option is not None and option.values:
            return list(words[: option.values])
        return list(takewhile(lambda word: word != "--" and not self._is_option(word.partition("=")[0]), words))

    def _is_option(self, word: str) -> bool:
        # A word with a space in it is a value, also for argparse.
        return word[:1] == "-" and not is_number(word) and " " not in word and len(word) > 1

    def _find(self, written: str) -> tuple[KnownOption | None, bool]:
        """Return an option by its name as written, and whether the engine may know that name at all."""
        by_flag = {flag.replace("_", "-"): one for one in self.options for flag in one.flags}
        name = written.replace("_", "-")
        if name in by_flag:
            return by_flag[name], True
        if not name.startswith("--"):
            # Its value may be written together with it, as in -O3.
            return None, not self.knows_short
        if self.abbreviations and "." in name:
            # vLLM takes a part of a JSON value by its path.
            return None, name.partition(".")[0] in by_flag
        longer = {by_flag[flag] for flag in by_flag if flag.startswith(name)} if self.abbreviations else set()
        return (longer.pop() if len(longer) == 1 else None), bool(longer)

    def _problem(self, option: KnownOption, values: Sequence[str]) -> str | None:
        if option.values == 0 and values and self.few_places:
            return f"takes no value, and is given {_shown(values[0])}; write the option alone (in YAML: true)"
        if option.values and len(values) < option.values:
            return "needs a value"
        if option.values == 0 or is_secret_name(option.flags[-1]):
            return None
        own = values if option.values is None else values[: option.values]
        return next(filter(None, (self._value_problem(option, value) for value in own)), None)

    def _value_problem(self, option: KnownOption, value: str) -> str | None:
        if option.complaint is not None:
            return option.complaint(value)
        if option.kind:
            convert, what = _KINDS[option.kind]
            try:
                convert(value)
            except ValueError:
                return f"takes {what}, not {_shown(value)}"
        if option.choices and value not in option.choices:
            return f"does not take {_shown(value)}{_hint(value, option.choices)}"
        return None

    def _nearest(self, written: str) -> str:
        flags = sorted({flag for one in self.options for flag in one.flags if flag.startswith("--")})
        near = difflib.get_close_matches(written.replace("_", "-"), flags, n=1, cutoff=0.6)
        return f"; did you mean {near[0]}?" if near else ""


def table_from_data(engine: str, data: Mapping[str, Any]) -> OptionTable:
    """Return a table that `option_reader` has written, or `help_text` has read.

    Args:
        engine: What the engine is called in messages.
        data: The table, read from JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        options = tuple(
            KnownOption(
                flags=tuple(map(str, one["flags"])),
                values=None if one["values"] is None else int(one["values"]),
                kind=one["kind"] if one["kind"] in _KINDS else "",
                choices=tuple(map(str, one["choices"])),
            )
            for one in data["options"]
            if one["flags"]
        )
        switches = {name: bool(data[name]) for name in ("abbreviations", "greedy", "few_places")}
        switches |= {name: bool(data[name]) for name in ("with_equals", "knows_short") if name in data}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no table of options: {error!r}") from None
    if not options:
        raise ValueError("no table of options: there are none in it")
    return OptionTable(engine, options, **switches)


def _hint(value: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    more = ", ..." if len(choices) > _MAX_CHOICES else ""
    return f"; it takes {', '.join(choices[:_MAX_CHOICES])}{more}"


def _shown(value: str) -> str:
    return repr(value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}...")
