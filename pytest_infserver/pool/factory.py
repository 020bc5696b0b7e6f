"""The value of the fixture ``inference_server_factory``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.config.loading import build_server, keyword_tree, merge_server
from pytest_infserver.config.tree import Tree
from pytest_infserver.config.validation import build_config, nearest
from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.launcher.factory import check_config, create_from_config
from pytest_infserver.pool.configured import single_server
from pytest_infserver.pool.outlook import outlook_on

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.run import Run

_NODES: dict[str, type[Any]] = {
    "class": pytest.Class,
    "module": pytest.File,
    "package": pytest.Package,
    "session": pytest.Session,
}
_LABEL = "inference_server_factory()"


class ServerFactory:
    """Starts servers that are stopped with the end of a scope of the running test."""

    def __init__(self, run: Run, session: pytest.Session) -> None:
        self._run = run
        self._session = session

    def __call__(
        self, which: str | Mapping[str, Any] | None = None, /, *, scope: str = "function", **settings: Any
    ) -> InferenceServer:
        """Start one more server and return it when it is ready.

        Args:
            which: The name of a configured server, or a mapping with its settings.
            scope: When it is stopped: at the end of the test (``function``), ``class``, ``module``, ``package`` or
                ``session``.
            **settings: Settings of the server; beside a name they replace what is configured. ``port=None`` asks for
                a free port in place of a configured one.

        Raises:
            ConfigError: The name, the scope or a setting is unknown.
            ServerStartupError: It did not become ready.
        """
        __tracebackhide__ = True
        try:
            node = self._node(scope)
            server = self._made(self._config(which, settings))
            server.on_progress = self._run.progress
            server.on_wait = lambda server: self._run.waiting(outlook_on(server))
            server.on_warning = self._run.member.incidents.append
            self._run.know_extra(server)
            node.addfinalizer(self._stopper(server))
            return server.start()
        except InferenceServerError as error:
            # The traceback would only show this package's own lines.
            raise error.with_traceback(None) from None

    def _made(self, config: ServerConfig) -> InferenceServer:
        cluster = self._run.cluster
        if cluster is None:
            return create_from_config(config)
        server = create_from_config(cluster.with_api_key(config))
        if not server.attached:
            name = f"{server.name} (factory)"
            cluster.keeper.adopt_transient(server, lambda demands: self._run.member.make_room_for(name, demands))
        return server

    def _config(self, what: str | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> ServerConfig:
        configs = self._run.choice.configs
        known = f"configured: {', '.join(configs) or 'none'}"
        if not isinstance(what, str):
            values = {**(what or {}), **settings}
            if "backend" not in values and "url" not in values:
                raise ConfigError(f"{_LABEL}: give the name of a configured server, or a backend; {known}")
            return single_server(self._run.settings, values, _LABEL)
        if what not in configs:
            raise ConfigError(f"{_LABEL}: no server is called '{what}'{nearest(what, configs)}")
        return _replaced(configs[what], settings) if settings else configs[what]

    def _stopper(self, server: InferenceServer) -> Callable[[], None]:
        def stop() -> None:
            try:
                server.stop()
            except InferenceServerError as error:
                self._run.late_errors.append(str(error))

        return stop

    def _node(self, scope: str) -> pytest.Item | pytest.Collector:
        scopes = ("function", *_NODES)
        if scope not in scopes:
            raise ConfigError(f"{_LABEL}: unknown scope '{scope}'{nearest(scope, scopes)}")
        item = self._run.item
        if item is None:
            return self._session
        if scope == "function":
            return item
        # As pytest does it: a function outside of a class is a class of its own.
        outside = item if scope == "class" else self._session
        return item.getparent(_NODES[scope]) or outside


def _replaced(config: ServerConfig, settings: Mapping[str, Any]) -> ServerConfig:
    """Return a configured server with some settings replaced; None gives a setting its default back."""
    build_server(settings, _LABEL)
    values = {**config.keywords(), "backend": config.backend}
    kept = {key: value for key, value in values.items() if settings.get(key, value) is not None}
    return check_config(build_config(merge_server(Tree(kept, config.origins), keyword_tree(settings, _LABEL))))
