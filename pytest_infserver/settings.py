"""Command line, environment and ini file become one frozen Settings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pytest_infserver.compat import reruns_on_change
from pytest_infserver.config.paths import absolute, resolve_paths
from pytest_infserver.options import OPTIONS, Option, raw_ini
from pytest_infserver.pool.collection.durations import DEFAULT_NAME
from pytest_infserver.pool.collection.shards import Shard, parse_shard

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}
_SERVER_OPTIONS = ("model", "profile", "debug", "output-dir", "startup-timeout", "env", "set")


class _Off:
    """Stands for a value that takes back what weaker sources say."""


_OFF = _Off()

Layer: TypeAlias = "tuple[str, Mapping[str, Any]]"
"""Settings of a server, and what the user knows their source as."""


@dataclass(frozen=True)
class Settings:
    """What one pytest run was told; by default nothing.

    Attributes:
        config_files: YAML files.
        servers: Globs of server names to keep; empty keeps all.
        backends: Names of backends to keep; empty keeps all.
        url: Server to attach to, or None.
        urls: Servers to attach to by their names.
        url_is_default: Whether a server's own ``url`` counts more than these.
        strict: Whether a test without a fitting server fails.
        max_servers: How many servers without GPUs run at the same time, or None.
        prelaunch: Whether servers are started before a test asks for them.
        keep: Seconds that servers live on after their last use, or None.
        on_crash: ``restart`` or ``fail``.
        cluster: The Ray cluster that the servers run on: an address, ``auto`` or ``local``; None for this machine.
        log: ``live`` shows servers' logs as they are written, ``failed`` only in the reports of failed tests.
        log_lines: How many lines of a log stand in such a report, or None for the built-in number.
        fresh_on_rerun: Whether a test that is repeated gets its servers started anew.
        share_gpu: Whether an idle server that can sleep does so when another one needs its GPUs.
        summary: When the table of servers is shown: ``auto``, ``always`` or ``never``.
        order: ``servers`` puts the tests of each server together, ``source`` moves none.
        shard: Which job's share of the tests runs, or None for all.
        durations: The file with what tests and starts took.
        save_durations: Whether that is written anew.
        load_save: Whether baselines of loads and scores are written anew.
        load_compare: Whether they are compared: ``on``, ``off``, or ``require``: a missing one is a failure.
        optional_names: Globs of names in marks that need not be configured.
        overrides: Server settings from environment and command line, each with the option it came from; a later
            one counts more.
        defaults: Server settings from the ini file, likewise.
    """

    config_files: tuple[Path, ...] = ()
    servers: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    url: str | None = None
    urls: Mapping[str, str] = field(default_factory=dict)
    url_is_default: bool = False
    strict: bool = False
    max_servers: int | None = None
    prelaunch: bool = True
    keep: float | None = None
    on_crash: str = "restart"
    cluster: str | None = None
    log: str = "failed"
    log_lines: int | None = None
    fresh_on_rerun: bool = False
    share_gpu: bool = False
    summary: str = "auto"
    order: str = "servers"
    shard: Shard | None = None
    durations: Path = Path(DEFAULT_NAME)
    save_durations: bool = False
    load_save: bool = False
    load_compare: str = "on"
    optional_names: tuple[str, ...] = ()
    overrides: tuple[Layer, ...] = ()
    defaults: tuple[Layer, ...] = ()


def read_settings(config: pytest.Config, environ: Mapping[str, str] | None = None) -> Settings:
    """Collect what the user said: the command line counts most, then the environment, then the ini file.

    Raises:
        pytest.UsageError: A value cannot be read.
    """
    reader = _Reader(config, os.environ if environ is None else environ)
    return Settings(
        config_files=reader.paths("config"),
        servers=tuple(reader.get("server") or ()),
        backends=tuple(reader.get("backend") or ()),
        **reader.urls(),
        url_is_default=reader.command_line("url") is None and reader.environment("url") is None,
        strict=bool(reader.get("strict")),
        max_servers=reader.count("max-servers"),
        prelaunch=reader.get("prelaunch") is not False,
        keep=reader.duration("keep") or None,
        on_crash=reader.one_of("on-crash", ("restart", "fail")),
        cluster=reader.get("cluster"),
        log=reader.one_of("log", ("live", "failed") if reader.shows_output() else ("failed", "live")),
        log_lines=reader.count("log-lines"),
        fresh_on_rerun=bool(reader.get("fresh-on-rerun")),
        share_gpu=bool(reader.get("share-gpu")),
        summary=reader.one_of("summary", ("auto", "always", "never")),
        order=reader.one_of("order", ("servers", "source")),
        shard=reader.shard("shard"),
        **reader.durations_file(),
        load_save=bool(reader.get("load-save")),
        load_compare=reader.one_of("load-compare", ("on", "off", "require")),
        optional_names=tuple(reader.get("optional-names") or ()),
        overrides=reader.overrides(),
        defaults=reader.defaults(),
    )


class _Reader:
    """Looks one option up in the three places."""

    def __init__(self, config: pytest.Config, environ: Mapping[str, str]) -> None:
        self.config = config
        self.environ = environ
        self.options = {option.name: option for option in OPTIONS}
        self.invocation_dir = config.invocation_params.dir
        self.ini_dir = config.inipath.parent if config.inipath is not None else self.invocation_dir

    def get(self, name: str) -> Any:
        return self._with_label(name)[0]

    def _with_label(self, name: str) -> tuple[Any, str]:
        for source in (self.command_line, self.environment, self.ini):
            value = source(name)
            if value is _OFF:
                break
            if value is not None:
                return value, self._label(self.options[name], source)
        return None, ""

    def command_line(self, name: str) -> Any:
        option, value = self.options[name], self.config.getoption(self.options[name].ini)
        if value is None:
            return None
        if value == "" or (isinstance(value, list) and not any(value)) or (option.can_be_off and value == ["off"]):
            return _OFF
        return _parse(option, value, option.flag) if option.can_be_off or option.separators == "," else value

    def environment(self, name: str) -> Any:
        option = self.options[name]
        text = self.environ.get(option.variable)
        return None if not text else _parse(option, text, option.variable)

    def ini(self, name: str) -> Any:
        option = self.options[name]
        value = raw_ini(self.config, option)
        return None if value is None or value == "" else _parse(option, value, f"ini {option.ini}")

    def shows_output(self) -> bool:
        """Return whether what tests write is shown as it comes: ``-s``."""
        return bool(self.config.getoption("capture", None) == "no")

    def count(self, name: str) -> int | None:
        value, label = self._with_label(name)
        if value is None:
            return None
        if not str(value).strip().isdecimal() or int(value) < 1:
            raise pytest.UsageError(f"{label}: expected a number from 1 on, not '{value}'")
        return int(value)

    def duration(self, name: str) -> float | None:
        value, label = self._with_label(name)
        try:
            return None if value is None else seconds(str(value))
        except ValueError:
            raise pytest.UsageError(f"{label}: expected a time such as 90s, 30m or 2h, not '{value}'") from None

    def one_of(self, name: str, known: Sequence[str]) -> str:
        value, label = self._with_label(name)
        if value is not None and value not in known:
            raise pytest.UsageError(f"{label}: expected {' or '.join(known)}, not '{value}'")
        return value or known[0]

    def shard(self, name: str) -> Shard | None:
        value, label = self._with_label(name)
        try:
            return None if value is None else parse_shard(value)
        except ValueError:
            raise pytest.UsageError(f"{label}: expected I/N with I from 1 to N, as in 1/3, not '{value}'") from None

    def durations_file(self) -> dict[str, Any]:
        value, label = self._with_label("save-durations")
        word = str(value or "off").strip().lower()
        save = word not in _FALSE
        if save and word not in _TRUE and not word.endswith(".json"):
            # The option stands before a test's path, which the command line takes for its value.
            raise pytest.UsageError(f"{label}: expected a file that ends in .json, not '{value}'; write it after '='")
        chosen = self.paths("durations") or (self.paths("save-durations") if word.endswith(".json") else ())
        return {"durations": next(iter(chosen), self.config.rootpath / DEFAULT_NAME), "save_durations": save}

    def urls(self) -> dict[str, Any]:
        values, label = self._with_label("url")
        named: dict[str, str] = {}
        alone: list[str] = []
        for value in values or ():
            name, equals, url = value.partition("=")
            if not equals or "/" in name:
                alone.append(value)
            elif not name or name in named:
                raise pytest.UsageError(f"{label}: expected NAME=URL, each name once, not '{value}'")
            else:
                named[name] = url
        if len(alone) > 1 or (alone and named):
            raise pytest.UsageError(f"{label}: of several servers each needs its name: NAME={alone[0]}")
        return {"url": alone[0] if alone else None, "urls": named}

    def paths(self, name: str) -> tuple[Path, ...]:
        from_ini = self.command_line(name) is None and self.environment(name) is None
        folder = self.ini_dir if from_ini else self.invocation_dir
        value = self.get(name) or ()
        return tuple(Path(absolute(item, folder)) for item in ([value] if isinstance(value, str) else value))

    def overrides(self) -> tuple[Layer, ...]:
        return (*self._layers(self.environment), *self._layers(self.command_line))

    def defaults(self) -> tuple[Layer, ...]:
        # xdist's `-f` runs again when a file of the project changes whose name does not begin with a dot.
        name = ".server_logs" if reruns_on_change(self.config) else "server_logs"
        logs = {"output_dir": str(self.config.rootpath / name)}
        return (("rootdir", logs), *self._layers(self.ini))

    def _label(self, option: Option, source: Callable[[str], Any]) -> str:
        if source == self.command_line:
            return option.flag
        return option.variable if source == self.environment else f"ini {option.ini}"

    def _layers(self, source: Callable[[str], Any]) -> list[Layer]:
        folder = self.ini_dir if source == self.ini else self.invocation_dir
        sources = (self.command_line, self.environment, self.ini)
        stronger = sources[: sources.index(source)]
        layers: list[Layer] = []
        for name in _SERVER_OPTIONS:
            option, value = self.options[name], source(name)
            if value is None or any(one(name) is _OFF for one in stronger):
                continue
            label = self._label(option, source)
            for settings in server_settings(name, value, label):
                layers.append((label, resolve_paths(settings, folder)))
        return layers


def server_settings(name: str, value: Any, label: str) -> list[dict[str, Any]]:
    """Return the server settings that one option stands for; a later one counts more.

    Args:
        name: The option's name.
        value: Its value.
        label: What the user knows the source as.

    Raises:
        pytest.UsageError: The value cannot be read.
        ConfigError: A value of ``--infserver-set`` is no YAML.
    """
    if value is _OFF:
        # Off is off, also for servers whose file says otherwise; the others only get back what that says.
        return [{"profile": None}] if name == "profile" else []
    if name == "debug":
        return [{"debug_mode": value}]
    if name == "profile":
        return [{"profile": {"enabled": True, "on_demand": False, "tool": value}}]
    if name == "startup-timeout":
        try:
            return [{"startup_timeout": float(value)}]
        except ValueError:
            raise pytest.UsageError(f"{label}: expected a number of seconds, not {value!r}") from None
    if name == "env":
        return [{"env_vars": dict(_assignment(item, label) for item in value)}]
    if name == "set":
        return [_dotted(*_assignment(item, label), label) for item in value]
    return [{name.replace("-", "_"): value}]


def _assignment(item: str, label: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise pytest.UsageError(f"{label}: expected KEY=VALUE, not {item!r}")
    return key.strip(), value


def _dotted(key: str, text: str, label: str) -> dict[str, Any]:
    """Return ``a.b=text`` as nested mappings. Below ``config`` only one level is cut: flags may hold dots."""
    from pytest_infserver.config.yaml_source import parse_scalar

    value = parse_scalar(text, label)
    top, dot, rest = key.partition(".")
    if not dot:
        return {top: value}
    if top != "config":
        return {top: {rest: value}}
    block, dot, flag = rest.partition(".")
    return {top: {block: {flag: value} if dot else value}}


def seconds(text: str) -> float:
    """Return the seconds of a text such as ``90``, ``90s``, ``30m``, ``1.5h`` or ``1d``.

    Raises:
        ValueError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if found is None:
        raise ValueError(text)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _parse(option: Option, value: Any, label: str) -> Any:
    if option.kind in ("flag", "switch"):
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            raise pytest.UsageError(f"{label}: expected true or false, not {value!r}")
        return text in _TRUE
    if option.can_be_off and (value is False or str(value).strip().lower() == "off"):
        return _OFF
    if option.kind == "value":
        if isinstance(value, (list, tuple, dict, bool)):
            raise pytest.UsageError(f"{label}: expected one text or number, not {value!r}")
        return str(value)
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    wrong = [item for item in items if isinstance(item, bool) or not isinstance(item, (str, int, float))]
    if wrong:
        raise pytest.UsageError(f"{label}: expected texts, not {wrong[0]!r}")
    texts = [str(item) for item in items]
    for separator in "\n" + option.separators:
        texts = [part for text in texts for part in text.split(separator)]
    return [text.strip() for text in texts if text.strip()]
