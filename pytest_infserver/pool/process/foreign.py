"""Backends of the user's, which the pool's process does not import: it asks pytest's process what they say."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_infserver.errors import InferenceServerError, UserCodeError
from pytest_infserver.launcher.backends.registry import backend_name
from pytest_infserver.launcher.handle import ServerHandle
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.launcher.user_code import asked, call, is_ours
from pytest_infserver.pool.process.channel import as_data, as_error

if TYPE_CHECKING:
    from pytest_infserver.launcher.allotment import Allotment

# What clients ask for, in their own process.
_CLIENTS_OWN = frozenset({"list_endpoints", "get_backend_name"})
_USES_ONLY = frozenset(
    {"api_model", "api_models", "client", "async_client", "process", "wait_for_log", "awake", "sleep", "wake"}
)
"""What `InferenceServer` offers that neither starts nor stops it."""

ALL = "*"
Ask = Callable[["ForeignServer", str, Sequence[Any]], Any]


@dataclass(frozen=True)
class ForeignBackend:
    """A backend as plain data.

    Attributes:
        base: Import path of the nearest class of ours that it is derived from.
        module: Its own module, for messages.
        class_name: Its own name.
        backend_name: What its ``get_backend_name`` returns.
        values: Its attributes that are plain values.
        properties: Names of those that are computed.
        methods: Names of its methods that the launcher asks.
    """

    base: str
    module: str
    class_name: str
    backend_name: str
    values: Mapping[str, Any]
    properties: tuple[str, ...]
    methods: tuple[str, ...]


def as_foreign(backend: type[InferenceServer]) -> ForeignBackend | None:
    """Return a backend as plain data; None for one of ours, which every process can import."""
    if is_ours(backend):
        return None
    base = next(one for one in backend.__mro__ if is_ours(one))
    values: dict[str, Any] = {}
    properties: list[str] = []
    methods: list[str] = []
    for name in sorted(overridden(backend)):
        found = inspect.getattr_static(backend, name)
        if isinstance(found, (staticmethod, classmethod)) or inspect.isfunction(found):
            methods.append(name)
        elif hasattr(type(found), "__get__") or not _is_plain(found):
            properties.append(name)
        else:
            values[name] = plain(found)
    path = f"{base.__module__}:{base.__qualname__}"
    name = backend_name(backend)
    return ForeignBackend(path, backend.__module__, backend.__name__, name, values, tuple(properties), tuple(methods))


def overridden(backend: type[InferenceServer]) -> set[str]:
    """Return the public names of the launcher's that a backend of the user's has replaced by its own."""
    base = next(one for one in backend.__mro__ if is_ours(one))
    own = backend.__mro__[: backend.__mro__.index(base)]
    names = {name for one in own for name in vars(one) if not name.startswith("_") and hasattr(base, name)}
    return names - _CLIENTS_OWN


def is_expressible(backend: type[InferenceServer]) -> bool:
    """Return whether another process can run servers of a backend: not where it replaces what starts or stops them."""
    if is_ours(backend):
        return True
    runs = {
        name for one in (InferenceServer, ServerHandle) for name in vars(one) if not name.startswith("_")
    } - _USES_ONLY
    return not overridden(backend) & runs


_SIMPLE: tuple[type[Any], ...] = (int, float, bytes)


class NotPlainError(Exception):
    """A value that another process may not be able to read."""


def plain(value: Any) -> Any:
    """Return a value as the pool's process can read it, which has none of the user's modules.

    Raises:
        NotPlainError: That is not possible.
    """
    if value is None or isinstance(value, (bool, re.Pattern, range)):
        return value
    if isinstance(value, str):
        # Its own characters, whatever a subclass shows instead: a member of an enumeration, or a secret.
        return str.__str__(value)
    for kind in _SIMPLE:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple) and hasattr(value, "_fields") and is_ours(type(value)):
        return type(value)(*map(plain, value))
    for collection in (list, tuple, set, frozenset):
        if isinstance(value, collection):
            return collection(map(plain, value))
    if isinstance(value, Mapping):
        return {plain(name): plain(one) for name, one in value.items()}
    if dataclasses.is_dataclass(value) and is_ours(type(value)):
        return value
    raise NotPlainError(f"{type(value).__name__} is no plain value")


def _is_plain(value: object) -> bool:
    try:
        plain(value)
    except NotPlainError:
        return False
    return True


class ForeignServer(InferenceServer):
    """A server whose backend only pytest's process knows; each answer holds for one launch."""

    ask_backend: Ask
    """Asks that process."""
    has_properties = False

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """Configure a server; see `InferenceServer`."""
        self._answers: dict[tuple[Any, ...], Any] = {}
        self._values: Mapping[str, tuple[bool, Any]] | None = None
        super().__init__(model, **settings)

    def _check_settings(self) -> None:
        """Do nothing: pytest's process has checked them."""

    def method_answer(self, name: str, *arguments: Any) -> Any:
        """Return what a method says; it is asked once as long as nothing changes that it may depend on."""
        allotment = self.allotment
        ports = tuple(allotment.ports.items())
        key = name, arguments, allotment.port, ports, allotment.devices, allotment.profile, allotment.place
        if key not in self._answers:
            self._answers[key] = type(self).ask_backend(self, name, arguments)
        return self._answers[key]

    def property_answer(self, name: str) -> Any:
        """Return the value of a property.

        All are asked for together, once for each launch: later nobody may answer, as while a test runs.
        """
        if self._values is None:
            self._values = type(self).ask_backend(self, ALL, ())
        went_well, value = self._values[name]
        if went_well:
            return value
        raise as_error(*value)

    def forget_commands(self) -> None:
        """Ask the backend again, also for its properties."""
        super().forget_commands()
        self._answers.clear()
        if self.has_properties:
            self._values = type(self).ask_backend(self, ALL, ())


def make_class(foreign: ForeignBackend, ask: Ask) -> type[InferenceServer]:
    """Return a class that stands for a backend of another process.

    Args:
        foreign: The backend.
        ask: Asks that process.
    """
    module, _, name = foreign.base.partition(":")
    base: type[InferenceServer] = getattr(importlib.import_module(module), name)
    members: dict[str, Any] = dict(foreign.values)
    members.update({name: _property(name) for name in foreign.properties})
    members.update({name: _method(name) for name in foreign.methods})
    members["get_backend_name"] = lambda self: foreign.backend_name
    members["ask_backend"] = staticmethod(ask)
    members["has_properties"] = bool(foreign.properties)
    members["__module__"] = foreign.module
    return type(foreign.class_name, (ForeignServer, base), members)


def _property(name: str) -> property:
    def get(self: ForeignServer) -> Any:
        return self.property_answer(name)

    return property(get)


def _method(name: str) -> Callable[..., Any]:
    def method(self: ForeignServer, *arguments: Any) -> Any:
        return self.method_answer(name, *arguments)

    return method


def answer_for(server: InferenceServer, name: str, arguments: Sequence[Any], allotment: Allotment) -> Any:
    """Return what a backend says of a launch that the pool's process plans.

    Args:
        server: A server of the backend, which is used for nothing else.
        name: Which attribute or method; ALL for all properties.
        arguments: Those of the method.
        allotment: What the launch has been given.

    Raises:
        UserCodeError: It has raised something.
    """
    server.use_allotment(allotment)
    if name == ALL:
        foreign = as_foreign(type(server))
        return {one: _outcome(server, one) for one in (foreign.properties if foreign is not None else ())}
    value = getattr(asked(server), name)
    return _plain_answer(server, name, value(*arguments) if callable(value) else value)


def _outcome(server: InferenceServer, name: str) -> tuple[bool, Any]:
    try:
        return True, _plain_answer(server, name, getattr(asked(server), name))
    except InferenceServerError as error:
        return False, as_data(error)


def _plain_answer(server: InferenceServer, name: str, value: Any) -> Any:
    try:
        # Here, where what a generator raises is the backend's.
        return plain(call(f"{type(server).__name__}.{name}", lambda: value, server))
    except NotPlainError as error:
        raise UserCodeError(f"{server}: {type(server).__name__}.{name} is not what is expected: {error}") from None
