"""What code of the user's raises, and how it is told."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_infserver
from pytest_infserver import CommandServer, ConfigError, UserCodeError
from pytest_infserver.launcher.engine.facts import EngineFacts
from pytest_infserver.launcher.user_code import asked, call

ERRORS = [KeyError("users bug"), OSError(5, "users bug"), SystemExit("users bug"), RecursionError("users bug")]
ERRORS += [pytest.fail.Exception("users bug"), pytest.skip.Exception("users bug")]  # type: ignore[list-item]


def raiser(error: BaseException) -> Callable[..., Any]:
    def users_function(*_: Any) -> Any:
        raise error

    return users_function


class Mine(CommandServer):
    """A backend of the user's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(launch_command=["x", "{port}"], name="mine", **settings)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_everything_is_an_error_of_that_code_as_in_a_test(error: BaseException) -> None:
    with pytest.raises(UserCodeError) as caught:
        call("the hook", raiser(error))
    first, second, *rest = str(caught.value).splitlines()
    assert first.startswith(f"the hook raised {type(error).__name__}: ")
    assert "users bug" in first
    assert second == "Traceback (most recent call last):"
    assert "in users_function" in rest[0]
    assert "launcher/user_code.py" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), pytest.exit.Exception("enough")])
def test_what_is_meant_for_the_whole_run_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        call("the hook", raiser(error))


def test_an_error_of_ours_passes_as_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^the file is wrong$"):
        call("the hook", raiser(ConfigError("the file is wrong")))


def test_an_error_without_words_of_its_own() -> None:
    with pytest.raises(UserCodeError, match=r"^X raised ValueError\nTraceback"):
        call("X", raiser(ValueError()))
    with pytest.raises(UserCodeError, match=r"^X raised ValueError: two lines\nTraceback"):
        call("X", raiser(ValueError("two\nlines")))


def test_what_it_was_raised_from_is_shown_without_our_lines() -> None:
    def users_function() -> None:
        try:
            call("inner", raiser(KeyError("first")))
        except UserCodeError:
            raise ValueError("second") from None

    def another() -> None:
        try:
            Mine().url_for(None)  # type: ignore[arg-type]
        except AttributeError as error:
            raise ValueError("second") from error

    for code in (users_function, another):
        with pytest.raises(UserCodeError, match="ValueError: second") as caught:
            call("outer", code)
        assert "pytest_infserver/" not in str(caught.value)
    assert "direct cause" in str(caught.value)


def test_an_error_that_nobody_else_than_we_raises_has_no_traceback() -> None:
    class Empty(Mine):
        get_health_endpoint = pytest_infserver.InferenceServer.get_launch_command  # type: ignore[assignment]

    with pytest.raises(UserCodeError) as caught:
        asked(Empty()).get_health_endpoint()
    assert str(caught.value) == "mine (command): Empty.get_health_endpoint() raised NotImplementedError"


def test_what_it_yields_is_asked_for_at_once() -> None:
    def users_generator() -> Iterator[int]:
        yield 1
        raise KeyError("late")

    with pytest.raises(UserCodeError, match="late"):
        call("it", users_generator)
    assert call("it", lambda: iter([1, 2])) == [1, 2]  # type: ignore[comparison-overlap]


def test_a_server_is_asked_for_methods_properties_and_what_was_put_in_their_place() -> None:
    class Asked(Mine):
        @property
        def cause_patterns(self) -> Any:
            raise KeyError("property")

        def derived_ports(self, port: int) -> list[int]:
            return [port + 1]

    server = Asked()
    server.get_binary_path = raiser(OSError("replaced"))  # type: ignore[method-assign]
    assert asked(server).derived_ports(8000) == [8001]
    assert asked(server).first_phase == "starting"
    with pytest.raises(UserCodeError, match=r"^mine \(command\): Asked.cause_patterns raised KeyError: 'property'"):
        _ = asked(server).cause_patterns
    with pytest.raises(UserCodeError, match=r"^mine \(command\): Asked.get_binary_path\(\) raised OSError: replaced"):
        asked(server).get_binary_path()


def test_secrets_are_masked_also_where_the_backend_cannot_make_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "very-secret-1")

    class Leaky(Mine):
        def get_launch_command(self) -> list[str]:
            raise ValueError("very-secret-1 and very-secret-2")

    with pytest.raises(UserCodeError) as caught:
        Leaky(env_vars={"OTHER_KEY": "very-secret-2"}).command()
    assert "ValueError: ******** and ********" in str(caught.value)
    assert "very-secret" not in str(caught.value)
    with pytest.raises(UserCodeError, match=r"\*\*\*\*\*\*\*\*"):
        call("a hook", raiser(KeyError("very-secret-1")))


@pytest.mark.parametrize("words", [None, "serve --port 8000", [], 5])
def test_a_launch_command_is_a_list_of_words(words: Any) -> None:
    server = Mine()
    server.get_launch_command = lambda: words  # type: ignore[method-assign]
    with pytest.raises(UserCodeError, match=r"Mine.get_launch_command\(\) must return a list of words, not "):
        server.command()


@pytest.mark.parametrize("url", [None, "/health", 5])
def test_a_health_endpoint_is_a_url(url: Any) -> None:
    server = Mine()
    server.get_health_endpoint = lambda: url  # type: ignore[method-assign]
    with pytest.raises(UserCodeError, match=r"Mine.get_health_endpoint\(\) must return a URL, not "):
        server.health_url()


# Nobody forgets it.

OVERRIDABLE = {
    *EngineFacts.__annotations__,
    *(name for name in vars(EngineFacts) if not name.startswith("_")),
    *("get_backend_name", "get_binary_path", "get_launch_command", "get_health_endpoint", "list_endpoints"),
    *("require_engine", "why_not_profiled", "check_health"),
}
# The attribute of another object that is called like one of a backend's.
OTHERS = {("launcher/startup/readiness.py", "phases")}
# For who asks a backend through another method or property of it.
OF_BACKENDS = {("launcher/configured.py", "endpoint_paths"), ("launcher/server.py", "endpoint_paths")}
OF_BACKENDS |= {("launcher/server.py", "mounted_endpoints"), ("launcher/configured.py", "get_binary_path")}
# Of a class, before there is a server.
OF_BACKENDS |= {("launcher/backends/registry.py", "get_backend_name")}


def unguarded(path: Path) -> Iterator[str]:
    """Return where a module of this package asks a backend without `asked`."""
    name = str(path.relative_to(Path(pytest_infserver.__file__).parent))
    tree = ast.parse(path.read_text())
    stand_ins = {
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_asked(node.value) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in OVERRIDABLE or _is_asked(node.value):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in stand_ins:
            continue
        if (name, node.attr) not in OTHERS | OF_BACKENDS:
            yield f"{name}:{node.lineno}: {node.attr}"


def _is_asked(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "asked"


def test_this_package_asks_backends_only_where_what_they_raise_is_expected() -> None:
    package = Path(pytest_infserver.__file__).parent
    # Backends call themselves and one another: that is inside of such a question.
    modules = [path for path in package.rglob("*.py") if path.parent.name != "backends" or path.stem == "registry"]
    assert [place for path in sorted(modules) for place in unguarded(path)] == []
