"""pytest's own inside that is used: what is missing in a new version of pytest is named here."""

from __future__ import annotations

import io

import pytest

from pytest_infserver.compat import (
    configure,
    definitions_of,
    file_of,
    is_parametrized_by,
    width_of,
    width_of_character,
)


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> list[object]:
    found: list[object] = request.param
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seen" in metafunc.fixturenames:
        found: list[object] = [len(definitions_of(metafunc, "seen") or ()), is_parametrized_by(metafunc, "seen")]
        metafunc.parametrize("seen", [found], indirect=True)
        found.append(is_parametrized_by(metafunc, "seen"))


def test_the_definitions_and_the_parameters_of_a_fixture(seen: list[object]) -> None:
    assert seen == [1, False, True]


def test_that_a_configuration_can_be_configured() -> None:
    assert callable(pytest.Config._do_configure)
    assert callable(configure)


def test_the_file_of_the_terminal_reporter(request: pytest.FixtureRequest) -> None:
    file = io.StringIO()
    assert file_of(pytest.TerminalReporter(request.config, file)) is file


@pytest.mark.parametrize(("text", "columns"), [("", 0), ("abc", 3), ("日本", 4), ("e\u0301", 1), ("\x07", -1)])
def test_the_columns_of_a_text(text: str, columns: int) -> None:
    assert width_of(text) == columns


@pytest.mark.parametrize(("character", "columns"), [("a", 1), ("日", 2), ("\u0301", 0), ("\x07", -1)])
def test_the_columns_of_a_character(character: str, columns: int) -> None:
    assert width_of_character(character) == columns
