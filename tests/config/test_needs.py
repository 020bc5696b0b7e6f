"""Which servers a server needs."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver import ConfigError, ServerConfig
from pytest_infserver.config.needs import check_needs, with_needs


def configs(**needs: tuple[str, ...]) -> dict[str, Any]:
    return {name: ServerConfig(name=name, needs=needed) for name, needed in needs.items()}


def test_what_is_needed_comes_first_and_once() -> None:
    servers = configs(router=("prefill", "decode"), prefill=("store",), decode=("store",), store=(), other=())
    check_needs(servers)
    assert with_needs(["router", "other", "store"], servers) == ("store", "prefill", "decode", "router", "other")
    assert with_needs(["unknown"], servers) == ("unknown",)


def test_a_circle_is_told_with_its_path() -> None:
    with pytest.raises(ConfigError, match="goes round in a circle: a -> b -> c -> a"):
        check_needs(configs(a=("b",), b=("c",), c=("a",)))
    with pytest.raises(ConfigError, match="a -> a"):
        check_needs(configs(a=("a",)))


def test_a_server_that_is_not_there_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no server is called 'prefil'; did you mean 'prefill'"):
        check_needs(configs(prefill=(), router=("prefil",)))
