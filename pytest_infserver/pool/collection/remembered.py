"""What the last run of the same invocation has wanted, so that its servers start while pytest still collects.

A plan that is not true any more costs the start of a server that nobody wants, and no more: what is started is always
what the configuration says now.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.compat import is_shuffled
from pytest_infserver.system.disk.files import is_trusted, open_read, write_whole
from pytest_infserver.system.disk.stamps import file_stamp
from pytest_infserver.system.secrets import find_secrets, is_secret_name
from pytest_infserver.version import __version__

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.pool.collection.choice import Choice

INPUT = "infserver_remembered"
"""Key of a worker's input: where it leaves its plan."""
NAME = "plans.json"
"""The file's name, in a folder of pytest's cache."""
_MOST_PLANS = 20
_MOST_FILES = 5000
_MAX_BYTES = 8 << 20
_OTHERS_MAY_WRITE = 0o022


@dataclass(frozen=True)
class Memory:
    """Where the plans of a project are, and which one is this invocation's.

    Attributes:
        path: The file.
        key: A hash of what this run was called with.
        writes: Whether this process leaves the plan.
        is_used: Whether servers have been started for it.
    """

    path: str
    key: str
    writes: bool = True
    is_used: bool = False

    def servers(self, choice: Choice) -> dict[str, ServerConfig]:
        """Return the servers that the tests are going to want, in this order, as far as they are known.

        There are none where a file has changed since then, or where others than this user may have written the plan.
        """
        plan: Any = _read(self.path).get(self.key)
        try:
            if any(file_stamp(path) != stamp for path, stamp in dict(plan["files"]).items()):
                return {}
            made = [(name, _config(choice, name, recipe)) for name, recipe in dict(plan["servers"]).items()]
        except (AttributeError, KeyError, TypeError, ValueError):
            # It is not what this version has written.
            return {}
        known = {name: config for name, config in made if config is not None and config.url is None}
        return {name: config for name, config in known.items() if known.keys() >= set(config.needs)}

    def leave(self, choice: Choice, names: Iterable[str], files: Iterable[Path]) -> None:
        """Note for the next run which servers the tests of this one want; it never fails.

        Args:
            choice: Knows the servers.
            names: The servers, the first wanted first.
            files: What they depend on.
        """
        seen = {os.fspath(path): file_stamp(path) for path in dict.fromkeys(files)}
        recipes = {name: _recipe(choice, name) for name in names}
        servers = {name: recipe for name, recipe in recipes.items() if recipe is not None}
        if not self.writes or len(seen) > _MOST_FILES:
            return
        plan = {"files": seen, "servers": servers}
        plans = _read(self.path)
        if plans.get(self.key, {"servers": {}}) == plan or not (servers or self.key in plans):
            return
        others = [(key, other) for key, other in plans.items() if key != self.key]
        text = json.dumps(dict([*others, (self.key, plan)][-_MOST_PLANS:]))
        try:
            # It is not for others, since settings are in it.
            write_whole(self.path, text.encode(), 0o600)
        except OSError:
            return


def memory_of(config: pytest.Config) -> Memory | None:
    """Return where this run's plan is; None where pytest keeps nothing, or tests have another order in each run.

    What an order wants last would have the room of what this one wants first.
    """
    worker: Mapping[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        known = worker.get(INPUT)
        return None if known is None else Memory(**known, writes=worker["workerid"] == "gw0")
    cache = getattr(config, "cache", None)
    if cache is None or is_shuffled(config):
        return None
    called = config.invocation_params
    variables = sorted(one for one in os.environ.items() if one[0].startswith(("INFSERVER_", "PYTEST_ADDOPTS")))
    words = json.dumps([__version__, str(called.dir), *map(str, called.args), variables])
    # Nothing of it can be read in the file, which CI may store: `--infserver-env` gives servers their keys.
    key = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
    try:
        return Memory(os.fspath(cache.mkdir("infserver") / NAME), key)
    except OSError:
        return None


def as_input(memory: Memory) -> dict[str, Any]:
    """Return what `memory_of` needs in a worker."""
    return {"path": memory.path, "key": memory.key, "is_used": memory.is_used}


def files_of(config: pytest.Config, items: Sequence[pytest.Item], others: Iterable[Path]) -> Iterator[Path]:
    """Yield the files on which depends what tests want: theirs, their conftest.py files, the ini file, and others."""
    folders: dict[Path, None] = {}
    for path in dict.fromkeys(item.path for item in items):
        yield path
        folders.update(dict.fromkeys(path.parents))
    yield from (path for folder in folders if (path := folder / "conftest.py").is_file())
    if config.inipath is not None:
        yield config.inipath
    yield from others


def _read(path: str) -> dict[str, Any]:
    """Return the plans by key; none where somebody else may have written them, who would say what is started here."""
    try:
        with open_read(path) as file:
            status = os.fstat(file.fileno())
            if not is_trusted(status.st_uid) or status.st_mode & _OTHERS_MAY_WRITE:
                return {}
            found = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(choice: Choice, name: str, recipe: Mapping[str, Any]) -> ServerConfig | None:
    if recipe.get("settings") is None:
        return choice.configs.get(name)
    return choice.remade(name, recipe["base"], recipe["settings"])


def _recipe(choice: Choice, name: str) -> dict[str, Any] | None:
    """Return how a server is made again; None for one that cannot, or of which something is a secret."""
    if name in choice.configs:
        return {}
    recipe = choice.recipes.get(name)
    if recipe is None or not _is_plain(recipe.settings) or any(_secrets_in(recipe.settings)):
        return None
    return asdict(recipe)


def _is_plain(value: Any) -> bool:
    """Return whether a value is the same when it has been written down, and no secret by its name."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and not is_secret_name(key) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _secrets_in(value: Any) -> Iterator[str]:
    """Yield the secrets in words of commands, and in URLs."""
    if isinstance(value, dict):
        for one in value.values():
            yield from _secrets_in(one)
    elif isinstance(value, list):
        yield from find_secrets({}, [str(one) for one in value])
    elif isinstance(value, str):
        yield from find_secrets({}, [value])
