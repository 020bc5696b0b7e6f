from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ConfigError, InferenceServer, create_server, load_server_configs, register_backend
from pytest_infserver.config.model import ServerConfig
from pytest_infserver.launcher.backends import registry
from pytest_infserver.launcher.factory import create_from_config

MODULE = """\
from pytest_infserver import InferenceServer
from {helper} import NAME

class MyServer(InferenceServer):
    def get_backend_name(self): return NAME
    def get_binary_path(self): return "my-binary"
    def get_launch_command(self): return [self.binary_path, "--model", self.model, "--port", str(self.port)]
    def get_health_endpoint(self): return f"{{self.server_url}}/health"
    def list_endpoints(self): return {{"api": f"{{self.server_url}}/api"}}
"""


class Base(InferenceServer):
    def get_backend_name(self) -> str:
        return "registry-test"

    def get_binary_path(self) -> str:
        return "x"

    def get_launch_command(self) -> list[str]:
        return [self.binary_path]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "beside_helper_mod.py").write_text('NAME = "beside"\n')
    (tmp_path / "beside_mod.py").write_text(MODULE.format(helper="beside_helper_mod"))
    (tmp_path / "broken_mod.py").write_text('raise RuntimeError("first\\nsecond")\n')
    (tmp_path / "syntax_mod.py").write_text("def (:\n")
    (tmp_path / "exit_mod.py").write_text("import sys\nsys.exit(3)\n")
    path = list(sys.path)
    yield tmp_path
    # What lies beside the YAML file comes last, and once.
    assert sys.path == path or sys.path == [*path, str(tmp_path)]
    sys.path[:] = path
    for name in ("beside_helper_mod", "beside_mod", "broken_mod", "syntax_mod", "exit_mod"):
        sys.modules.pop(name, None)


def load(folder: Path, backend: str) -> InferenceServer:
    path = folder / "s.yaml"
    path.write_text(f"model: m\nbackend: {backend}\n")
    return create_from_config(load_server_configs(path)[0])


def test_a_backend_beside_the_yaml_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    server = load(folder, "beside_mod:MyServer")
    assert (server.name, server.get_backend_name()) == ("beside", "beside")
    assert server.get_launch_command() == ["my-binary", "--model", "m", "--port", "8000"]


def test_a_working_directory_that_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker one of whose tests has removed it."""
    (folder / "s.yaml").write_text("model: m\nbackend: beside_mod:MyServer\noutput_dir: logs\n")
    monkeypatch.chdir(folder)
    (config,) = load_server_configs("s.yaml")
    create_from_config(config)
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert create_from_config(config).output_dir == folder / "logs"


def test_an_import_path_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert create_server("beside_mod:MyServer", "m").get_backend_name() == "beside"


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("vlm", "unknown backend 'vlm'; did you mean 'vllm'?"),
        ("VLLM", "unknown backend 'VLLM'; did you mean 'vllm'?"),
        ("xyz", "unknown backend 'xyz'; known are: command, llamacpp, remote, sglang, transformers, vllm"),
        (
            "no_such_mod:X",
            "backend 'no_such_mod:X' cannot be imported: this raised ModuleNotFoundError: No module named",
        ),
        (
            "beside_mod:Your",
            "backend 'beside_mod:Your' cannot be imported: this raised AttributeError: module 'beside_mod'",
        ),
        ("beside_mod:NAME", "backend 'beside_mod:NAME' is not a subclass of InferenceServer"),
        ("broken_mod:X", "backend 'broken_mod:X' cannot be imported: this raised RuntimeError: first second"),
        ("syntax_mod:X", "backend 'syntax_mod:X' cannot be imported: this raised SyntaxError: invalid syntax"),
        ("exit_mod:X", "backend 'exit_mod:X' cannot be imported: this raised SystemExit: 3"),
        ("':X'", "backend ':X' cannot be imported: this raised ValueError: Empty module name"),
    ],
)
def test_a_backend_that_is_not_there(folder: Path, backend: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, backend)
    first, *traceback = str(caught.value).splitlines()
    assert first.startswith(f"{folder}/s.yaml:2:1: {message}")
    # Only where the module itself has run.
    assert bool(traceback) == (backend.partition(":")[0] in ("broken_mod", "exit_mod"))
    assert "importlib" not in str(caught.value)


def test_register_backend() -> None:
    assert register_backend(Base) is Base
    assert type(create_server("registry-test", "m")) is Base
    assert "registry-test" in registry.known_backends()
    with pytest.raises(ConfigError, match="did you mean 'registry-test'"):
        create_server("registry_test", "m")


def test_the_later_registration_counts() -> None:
    class Other(Base):
        pass

    class Mine(Base):
        def get_backend_name(self) -> str:
            return "vllm"

    for backend in (Base, Other, Mine):
        register_backend(backend)
    assert type(create_server("registry-test", "m")) is Other
    assert type(create_server("vllm", "m")) is Mine


class NeedsServer(Base):
    def get_backend_name(self) -> str:
        return self.model


class Nameless(Base):
    def get_backend_name(self) -> str:
        return ""


class Unnamed(InferenceServer):
    pass


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (5, "5 is no backend: it must be a subclass of InferenceServer"),
        (dict, "is no backend: it must be a subclass of InferenceServer"),
        (NeedsServer, "NeedsServer.get_backend_name() must return a fixed name, but raised AttributeError"),
        (Nameless, "Nameless.get_backend_name() must return a name, not ''"),
        (Unnamed, "Unnamed.get_backend_name() must return a fixed name, but raised NotImplementedError"),
    ],
)
def test_what_is_no_backend(backend: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        register_backend(backend)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "transformers", "command", "remote"])
def test_each_backend_of_the_package_is_found_under_the_name_that_it_gives(name: str) -> None:
    assert registry.backend_name(registry.find_backend(ServerConfig(backend=name))) == name


def test_a_backend_may_import_its_neighbours_later(folder: Path) -> None:
    (folder / "lazy_mod.py").write_text(
        "from beside_mod import MyServer\n"
        "class Lazy(MyServer):\n"
        "    def get_launch_command(self):\n"
        "        import late_helper_mod\n"
        "        return [late_helper_mod.BINARY]\n"
    )
    (folder / "late_helper_mod.py").write_text("BINARY = 'late'\n")
    assert load(folder, "lazy_mod:Lazy").get_launch_command() == ["late"]
    for name in ("lazy_mod", "late_helper_mod"):
        sys.modules.pop(name)
