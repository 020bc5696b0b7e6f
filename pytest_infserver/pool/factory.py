"""The value of the fixture ``inference_server_factory``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pytest_infserver.config.model import hidden
from pytest_infserver.config.validation import nearest
from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.launcher.factory import create_from_config
from pytest_infserver.pool.collection.variants import Variant, changed, digest
from pytest_infserver.pool.configured import own_server
from pytest_infserver.pool.wait_report import wait_report_on
from pytest_infserver.system.environment import changes, surroundings

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.run import Run
    from pytest_infserver.system.environment import Surroundings

_NODES: dict[str, type[Any]] = {
    "class": pytest.Class,
    "module": pytest.File,
    "package": pytest.Package,
    "session": pytest.Session,
}
_LABEL = "inference_server_factory()"
Until: TypeAlias = "Callable[[Callable[[], object]], object]"


class ServerFactory:
    """Gives out servers that end with a scope of the running test, or with the fixture that asks for them."""

    def __init__(self, run: Run, session: pytest.Session, before: Surroundings | None) -> None:
        self._run = run
        self._before = before
        self._session = session
        self._made_so_far: Counter[str] = Counter()
        worker = getattr(session.config, "workerinput", {}).get("workerid")
        self._mark = f"{worker}.fresh" if worker else "fresh"

    def __call__(
        self,
        which: str | Variant | Mapping[str, Any] | None = None,
        /,
        *,
        scope: str | None = None,
        fresh: bool = False,
        **settings: Any,
    ) -> InferenceServer:
        """Return a ready server; one with equal settings that runs already is the same one.

        Args:
            which: The name of a configured server, a `variant` of one, or a mapping with a server's settings.
            scope: When it ends: with the test (``function``), ``class``, ``module``, ``package`` or ``session``; if
                None with the fixture that asks for it, or the test.
            fresh: Whether it must be one of its own, which nobody has used.
            **settings: Settings of the server; beside a name they replace what is configured. ``port=None`` asks for
                a free port in place of a configured one.

        Raises:
            ConfigError: The name, the scope or a setting is unknown, or it needs more than there is.
            ServerStartupError: It did not become ready.
        """
        __tracebackhide__ = True
        try:
            until = self._end_of(scope)
            config = self._config(which, settings)
            if not self._run.member.can_run(config):
                return self._started_here(config, until)
            config = self._with_surroundings(config)
            if fresh:
                self._made_so_far[config.name] += 1
                name = f"{config.name}.{self._mark}-{self._made_so_far[config.name]}"
                config = dataclasses.replace(config, name=name)
            return self._run.holds.hold(config, until, scope)
        except InferenceServerError as error:
            # The traceback would only show this package's own lines.
            raise error.with_traceback(None) from None

    def _with_surroundings(self, config: ServerConfig) -> ServerConfig:
        """Return a server with what tests have changed of the environment and working directory by now.

        Its settings count more. With what is changed it is another server, called by the servers' name and a hash.
        """
        if self._before is None or config.url is not None:
            return config
        now = surroundings()
        env_vars: dict[str, str | None] = changes(self._before.env, now.env)
        env_vars = {name: value for name, value in env_vars.items() if name not in config.env_vars}
        moved = now.folder if now.folder != self._before.folder and self._run.cluster is None else None
        cwd = config.cwd or moved
        if not env_vars and cwd == config.cwd:
            return config
        name = f"{config.name}+env-{digest([env_vars, cwd])[:6]}"
        return dataclasses.replace(config, name=name, env_vars={**env_vars, **config.env_vars}, cwd=cwd)

    def _started_here(self, config: ServerConfig, until: Until) -> InferenceServer:
        """Start a server in this process, whose backend starts and stops its servers itself."""
        server = create_from_config(config)
        # Of its own, so that what a test's server has written is not the next one's, and the same in each run.
        self._made_so_far[server.name] += 1
        server.runtime.use_log_folder(f"{server.name}.{self._mark}-{self._made_so_far[server.name]}")
        server.on_progress = self._run.progress
        server.on_wait = lambda server: self._run.waiting(wait_report_on(server))
        server.on_warning = self._run.member.incidents.append
        self._run.know_extra(server)
        until(self._stopper(server))
        return server.start()

    def _config(self, what: str | Variant | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> ServerConfig:
        if isinstance(what, Variant):
            settings = {**what.settings, **settings}
            what = what.name
        configs = self._run.choice.configs
        known = f"configured: {', '.join(configs) or 'none'}"
        if not isinstance(what, str):
            values = {**(what or {}), **settings}
            if "backend" not in values and "url" not in values:
                message = f"{_LABEL}: give the name of a configured server, or a backend; {known}"
                raise ConfigError(hidden(message, configs.values()))
            return own_server(self._run.settings, values, _LABEL)
        if what not in configs:
            message = f"{_LABEL}: no server is called '{what}'{nearest(what, configs)}"
            raise ConfigError(hidden(message, configs.values()))
        return changed(configs[what], settings, _LABEL) if settings else configs[what]

    def _stopper(self, server: InferenceServer) -> Callable[[], None]:
        def stop() -> None:
            try:
                server.stop()
            except InferenceServerError as error:
                self._run.late_errors.append(str(error))

        return stop

    def _end_of(self, scope: str | None) -> Until:
        """Return what has something done at the end of a scope.

        Raises:
            ConfigError: There is no such scope.
        """
        scopes = ("function", *_NODES)
        if scope is not None and scope not in scopes:
            raise ConfigError(f"{_LABEL}: unknown scope '{scope}'{nearest(scope, scopes)}")
        fixture = self._run.fixture_in_setup
        if fixture is not None and scope in (None, fixture.scope):
            # Before the fixture is made with its next parameter.
            return fixture.addfinalizer
        item = self._run.item
        if item is None:
            return self._session.addfinalizer
        if scope in (None, "function"):
            return item.addfinalizer
        # As pytest does it: a function outside of a class is a class of its own.
        outside = item if scope == "class" else self._session
        return (item.getparent(_NODES[str(scope)]) or outside).addfinalizer
