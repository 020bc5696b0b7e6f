"""The steps of one start and of one stop of a server, which are taken without the pool's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError, ServerStartupError
from pytest_infserver.launcher.user_code import ends_run
from pytest_infserver.pool.outcomes import user_error
from pytest_infserver.pool.servers.eviction import in_the_way, on_devices, sent_away
from pytest_infserver.pool.servers.stop_refusals import stop_refusal, why_down

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.servers.books import Books
    from pytest_infserver.pool.servers.policy import Hooks


class StartStop:
    """Takes the steps of a start and of a stop; it is called without the lock, and takes it for what it reads."""

    def __init__(self, books: Books, hooks: Hooks) -> None:
        """Remember what is needed.

        Args:
            books: What is known of the servers.
            hooks: Whom to tell.
        """
        self._books = books
        self._changed = books.changed
        self._room = books.room
        self._failures = books.failures
        self._hooks = hooks

    def started(self, server: InferenceServer) -> InferenceServerError | None:
        """Start a server, with all that goes with it, and return why it could not be had."""
        try:
            self._use_peers(server)
            with self._changed:
                if not self._room.renew(server.name):
                    raise ServerStartupError(
                        f"{server} cannot start again: another process has taken its GPUs, or its port, meanwhile"
                    )
                claim, places = self._room.devices(server.name), self._room.places_left()
            if not server.attached and not server.runtime.launched and not server.runtime.runs_elsewhere:
                self._clear(server, places)
            server.use_devices(claim)
            server.runtime.stop_refusal = stop_refusal(server, self._books)
            server.start()
            self.note_adoption(server)
            self._hooks.started(server)
        except InferenceServerError as error:
            return error
        except BaseException as error:
            if ends_run(error):
                raise
            # It is one of the tests that want the server, not of the whole run.
            return ServerStartupError(user_error(server, error))
        return None

    def _use_peers(self, server: InferenceServer) -> None:
        """Tell a server where those are that it needs.

        Raises:
            ServerStartupError: One of them could not be had.
        """
        names = self._books.handles.needs_of(server.name)
        with self._changed:
            failed = self._failures.first(names)
            error = None if failed is None else self._failures.error(failed)
        if error is not None:
            raise ServerStartupError(f"{server} cannot start: it needs {failed}, and {error}")
        if names:
            server.use_peers([self._books.handles.get(name) for name in names])

    def _clear(self, server: InferenceServer, places: int) -> None:
        from pytest_infserver.launcher.keeping.kept import kept_servers

        for kept in in_the_way(server, kept_servers(), places):
            self._books.tell_once(sent_away(kept, f" to make room for {server}"))

    def make_way(self, name: str) -> None:
        """Stop a kept server that holds the GPUs that another one needs."""
        from pytest_infserver.launcher.keeping.kept import kept_servers

        for kept in on_devices(self._room.candidates(name), kept_servers())[:1]:
            self._books.tell_once(sent_away(kept, f": {name} needs its GPUs"))

    def taken_over(self, server: InferenceServer) -> bool:
        """Take a server over that an earlier run has kept, and return whether there was one like this."""
        try:
            return server.take_over()
        except BaseException as error:
            if ends_run(error):
                raise
            # Its start says it better.
            return False

    def tell_of_takeover(self, server: InferenceServer) -> list[str]:
        """Tell of a server that was taken over, and return what went wrong."""
        return self._tried(self._hooks.started, server)

    def note_adoption(self, server: InferenceServer) -> None:
        """Note as an incident that a server was taken over which is going to be stopped; also under the lock."""
        if server.runtime.status.taken_over and self._books.policy.keep is None:
            self._books.tell_once(
                f"{server}: an earlier run had kept it; this one took it over and stops it at its end"
                " (--infserver-keep keeps it again)"
            )

    def stopped(self, server: InferenceServer) -> list[str]:
        """Stop a server, with all that goes with it, and return what went wrong."""
        launched = server.runtime.launched
        errors: list[str] = []
        if launched:
            errors += self._tried(self._hooks.stopping, server)
            server.runtime.stop_refusal = None
            errors += self._tried(lambda one: one.stop(), server)
            errors += self._tried(lambda one: one.runtime.release_port(), server)
        with self._changed:
            server.runtime.stop_refusal = why_down(server, self._books)
        if launched:
            errors += self._tried(self._hooks.stopped, server)
        return errors

    def _tried(self, action: Callable[[InferenceServer], object], server: InferenceServer) -> list[str]:
        """Do one step, and return what went wrong; also what ends the run does not keep the others from being done."""
        with self._books.end.exits():
            return _try(action, server)
        return []

    def kept(self, server: InferenceServer, seconds: float) -> bool:
        """Leave a server running, and return whether it is kept.

        Args:
            server: The server.
            seconds: How long it lives on after its last use.
        """
        left = seconds - self._books.planned.unused_for(server.name)
        if left <= 0 or not server.running:
            return False
        if not server.runtime.status.awake:
            self._books.incidents.append(f"{server} is not kept: it sleeps")
            return False
        server.runtime.stop_refusal = None
        kept = server.keep(left)
        if not kept and not server.attached:
            self._books.incidents.append(f"{server} is not kept: {server.why_not_kept}")
        return kept


def _try(action: Callable[[InferenceServer], object], server: InferenceServer) -> list[str]:
    try:
        action(server)
    except InferenceServerError as error:
        return [str(error)]
    except BaseException as error:
        if ends_run(error):
            raise
        # It must not keep the next server from its stop.
        return [user_error(server, error)]
    return []
