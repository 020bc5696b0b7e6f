"""The process that is connected to Ray, for one run: ``python -m pytest_infserver.cluster.agent HANDLE OWNER``.

Not pytest itself: Ray 2.60 ends a process without a word when the head node has been away for a minute, and brings
threads, signal handlers and lines of its own. It answers pickled questions on the socket that it inherits, and ends
with it; then Ray ends the actors, and their supervisors the servers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from pytest_infserver.cluster.agent.agent import Agent
from pytest_infserver.cluster.agent.answers import answer
from pytest_infserver.cluster.agent.protocol import FAILED
from pytest_infserver.cluster.parent import watch_parent


def serve(connection: Connection[Any, Any], agent: Agent) -> None:
    """Answer until the other side hangs up, each question in a thread of its own."""
    lock = threading.Lock()

    def work(number: int, verb: str, arguments: Mapping[str, Any]) -> None:
        reply = (number, *answer(agent, verb, arguments))
        with lock, contextlib.suppress(OSError):
            try:
                connection.send(reply)
            except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
                connection.send((number, FAILED, f"{verb}: the answer cannot be sent: {error}"))

    with contextlib.suppress(EOFError, OSError):
        while True:
            number, verb, arguments = connection.recv()
            if number is None:
                # Nobody waits for it, and it is to come before what follows.
                answer(agent, verb, arguments)
            elif verb == "connect":
                # A local cluster ends with the thread that has started it.
                work(number, verb, arguments)
            else:
                threading.Thread(target=work, args=(number, verb, arguments), daemon=True).start()


def main() -> None:
    """Serve pytest, and leave the cluster when it is gone."""
    handle, owner = map(int, sys.argv[1:3])
    agent = Agent()

    once = threading.Lock()

    def leave() -> None:
        # Both that its owner is gone and that the connection is closed may be seen; a second one would cut the first
        # one short.
        with once:
            agent.leave()
            os._exit(0)

    # A process that pytest has forked may still hold its end of the connection.
    watch_parent(owner, leave)
    serve(Connection(handle), agent)
    leave()


if __name__ == "__main__":
    main()
