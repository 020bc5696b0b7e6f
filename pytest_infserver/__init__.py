"""Test inference servers with pytest: a YAML file names them, one fixture hands them to your tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_infserver.version import __version__ as __version__

if TYPE_CHECKING:
    from pytest_infserver.config.model import ProfileConfig, ServerConfig
    from pytest_infserver.errors import (
        ConfigError,
        InferenceServerError,
        LeakError,
        LogTimeoutError,
        PortInUseError,
        ProfileError,
        ServerDiedError,
        ServerStartupError,
        ServerStartupTimeout,
        UserCodeError,
    )
    from pytest_infserver.launcher.backends.command import CommandServer
    from pytest_infserver.launcher.backends.llamacpp import LlamaCppServer
    from pytest_infserver.launcher.backends.registry import register_backend
    from pytest_infserver.launcher.backends.remote import RemoteServer
    from pytest_infserver.launcher.backends.sglang import SGLangServer
    from pytest_infserver.launcher.backends.transformers import TransformersServer
    from pytest_infserver.launcher.backends.vllm import VLLMServer
    from pytest_infserver.launcher.factory import (
        create_server,
        load_server_config,
        load_server_configs,
        start_server_from_config,
    )
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.launcher.state import ServerState
    from pytest_infserver.load.results import LoadResult, LoadWarning
    from pytest_infserver.load.running import LoadInterrupted
    from pytest_infserver.pool.collection.variants import variant

pytest_plugins = ("pytest_infserver.plugin",)
"""For ``-p pytest_infserver``."""

_HOMES = {
    "CommandServer": "launcher.backends.command",
    "ConfigError": "errors",
    "InferenceServer": "launcher.server",
    "InferenceServerError": "errors",
    "LeakError": "errors",
    "LlamaCppServer": "launcher.backends.llamacpp",
    "LoadInterrupted": "load.running",
    "LoadResult": "load.results",
    "LoadWarning": "load.results",
    "LogTimeoutError": "errors",
    "PortInUseError": "errors",
    "variant": "pool.collection.variants",
    "ProfileConfig": "config.model",
    "ProfileError": "errors",
    "RemoteServer": "launcher.backends.remote",
    "SGLangServer": "launcher.backends.sglang",
    "ServerConfig": "config.model",
    "ServerDiedError": "errors",
    "ServerStartupError": "errors",
    "ServerStartupTimeout": "errors",
    "ServerState": "launcher.state",
    "TransformersServer": "launcher.backends.transformers",
    "UserCodeError": "errors",
    "VLLMServer": "launcher.backends.vllm",
    "create_server": "launcher.factory",
    "load_server_config": "launcher.factory",
    "load_server_configs": "launcher.factory",
    "register_backend": "launcher.backends.registry",
    "start_server_from_config": "launcher.factory",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: pytest loads this package in every run, also where no server is wanted.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


__all__ = [
    "CommandServer",
    "ConfigError",
    "InferenceServer",
    "InferenceServerError",
    "LeakError",
    "LlamaCppServer",
    "LoadInterrupted",
    "LoadResult",
    "LoadWarning",
    "LogTimeoutError",
    "PortInUseError",
    "ProfileConfig",
    "ProfileError",
    "RemoteServer",
    "SGLangServer",
    "ServerConfig",
    "ServerDiedError",
    "ServerStartupError",
    "ServerStartupTimeout",
    "ServerState",
    "TransformersServer",
    "UserCodeError",
    "VLLMServer",
    "create_server",
    "load_server_config",
    "load_server_configs",
    "register_backend",
    "start_server_from_config",
    "variant",
]
