"""Brings a server that many tests share back to where it began, by requests: the key ``reset``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_MAX_SHOWN = 500


def reset(server: InferenceServer) -> None:
    """Send the configured requests, one after another.

    Raises:
        InferenceServerError: One was refused, or not answered within ``heartbeat_timeout``.
    """
    if not server.settings.reset:
        return
    import requests

    from pytest_infserver.system.http.session import session_for

    with session_for(asked(server).address, lambda: server.address) as session:
        for path in server.settings.reset:
            try:
                answer = session.post(server.url_for(path), timeout=server.settings.heartbeat_timeout)
            except requests.RequestException as error:
                raise InferenceServerError(_failed(server, path, f"failed: {error}")) from None
            if not answer.ok:
                raise InferenceServerError(_failed(server, path, f"was answered {answer.status_code}", answer.text))


def _failed(server: InferenceServer, path: str, what: str, text: str = "") -> str:
    said = f" ({text.strip()[:_MAX_SHOWN]})" if text.strip() else ""
    words = (
        f"{server}: POST {path} {what}{said}; it is sent before each test, as 'reset:' says. Does the server have that"
        " path (vLLM: only with VLLM_SERVER_DEV_MODE=1 in 'env_vars:')?"
    )
    return clean(words, server.secrets)
