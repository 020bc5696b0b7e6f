"""An HTTP client that may be used in one event loop after another, as those of tests with loops of their own."""

from __future__ import annotations

from typing import Any


def any_loop_client(**settings: Any) -> Any:
    """Return an asynchronous HTTP client for ``openai.AsyncOpenAI`` that belongs to no event loop.

    A connection that is kept open belongs to the loop that has opened it, and cannot be used in the next one. So each
    request has a connection of its own, and each of asyncio and trio a client of its own.

    Args:
        **settings: Arguments of ``openai.DefaultAsyncHttpxClient``.
    """
    import openai
    import sniffio

    # openai is made with httpx or its successor: only its own names say which.
    nothing_kept = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, max_keepalive_connections=0)
    settings = {"limits": nothing_kept, **settings}

    class AnyLoopClient(openai.DefaultAsyncHttpxClient):
        """Hands each request to the client of the library that runs the loop."""

        def __init__(self) -> None:
            super().__init__(**settings)
            self._of_library: dict[str, Any] = {}

        async def send(self, request: Any, **how: Any) -> Any:
            library = sniffio.current_async_library()
            if library not in self._of_library:
                self._of_library[library] = openai.DefaultAsyncHttpxClient(**settings)
            return await self._of_library[library].send(request, **how)

        async def aclose(self) -> None:
            for client in self._of_library.values():
                await client.aclose()
            await super().aclose()

    return AnyLoopClient()
