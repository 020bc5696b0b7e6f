"""``needs:`` of a server: which others are started before it, and stopped after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_infserver.config.model import ServerConfig
from pytest_infserver.config.validation import nearest


def check_needs(configs: Mapping[str, ServerConfig]) -> None:
    """Make sure that what servers need is there, and that none needs itself, over however many others.

    Args:
        configs: All servers by name.

    Raises:
        ConfigError: A server is not there, or the needs go round in a circle.
    """
    for name, config in configs.items():
        for place, needed in enumerate(config.needs):
            if needed not in configs:
                hint = nearest(needed, configs)
                raise config.error(f"'needs': no server is called '{needed}'{hint}", "needs", place)
        circle = _circle(name, configs, ())
        if circle:
            raise config.error(f"'needs' goes round in a circle: {' -> '.join(circle)}", "needs")


def _circle(name: str, configs: Mapping[str, ServerConfig], path: tuple[str, ...]) -> tuple[str, ...]:
    if name in path:
        return (*path[path.index(name) :], name)
    for needed in configs[name].needs if name in configs else ():
        found = _circle(needed, configs, (*path, name))
        if found:
            return found
    return ()


def with_needs(names: Iterable[str], configs: Mapping[str, ServerConfig]) -> tuple[str, ...]:
    """Return servers with all that they need, over however many others, what is needed first.

    Args:
        names: The servers.
        configs: All servers by name, whose needs have been checked.
    """
    found: dict[str, None] = {}

    def add(name: str) -> None:
        for needed in getattr(configs.get(name), "needs", ()):
            add(needed)
        found[name] = None

    for name in names:
        add(name)
    return tuple(found)
