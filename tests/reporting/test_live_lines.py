"""Lines below the cursor, on an emulated terminal."""

from __future__ import annotations

import functools
import os
import random
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest._io import TerminalWriter
from screens import Tty, resize

from pytest_infserver.reporting.terminal import live_lines
from pytest_infserver.reporting.terminal.live_lines import LiveLines, terminal_size

pytestmark = pytest.mark.usefixtures("hard_limit")


@pytest.fixture(autouse=True)
def only_this_file_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        monkeypatch.setattr(live_lines.sys, name, None)


def made(tty: Tty, *, wipe: bool = True) -> tuple[TerminalWriter, LiveLines]:
    writer = TerminalWriter(tty)
    return writer, LiveLines(tty, wipe=wipe)


def test_lines_stand_below_the_cursor_and_leave_no_trace() -> None:
    tty = Tty()
    writer, live = made(tty)
    writer.write("title\n")
    writer.write("test_it.py ..")
    live.show(["a  importing", "b  loading"])
    assert tty.lines == ["title", "test_it.py ..", "a  importing", "b  loading"]
    assert (tty.screen.cursor.y, tty.screen.cursor.x) == (1, 13)
    assert writer.width_of_current_line == 13
    live.show(["b  ready"])
    assert tty.lines == ["title", "test_it.py ..", "b  ready"]
    live.show([])
    assert tty.lines == ["title", "test_it.py .."]
    assert (tty.screen.cursor.y, tty.screen.cursor.x) == (1, 13)
    writer.write(".F\nend\n")
    assert tty.lines == ["title", "test_it.py ...F", "end"]


@pytest.mark.parametrize("rows_before", range(12))
def test_at_the_bottom_of_the_screen_they_make_room(rows_before: int) -> None:
    tty = Tty(40, 8)
    writer, live = made(tty)
    before = [f"line {number}" for number in range(rows_before)]
    writer.write("".join(f"{line}\n" for line in before) + "unfinished")
    for _ in range(3):
        live.show(["a", "b", "c"])
        assert tty.lines == [*before, "unfinished", "a", "b", "c"]
    live.show([])
    writer.write(" finished\n")
    assert tty.lines == [*before, "unfinished finished"]


def test_what_is_written_meanwhile_takes_their_place_and_they_return_with_the_flush() -> None:
    tty = Tty()
    writer, live = made(tty)
    live.show(["a  importing"])
    writer.write("one")
    assert tty.lines == ["one"]
    live._drawn_at = 0.0
    writer.flush()
    assert tty.lines == ["one", "a  importing"]
    writer.write("\ntwo")
    assert tty.lines == ["one", "two"]
    live.show(["a  loading"])
    assert tty.lines == ["one", "two", "a  loading"]
    live.show([])
    writer.write("\nthree", flush=True)
    assert tty.lines == ["one", "two", "three"]


def test_a_flood_is_drawn_into_only_now_and_then() -> None:
    tty = Tty()
    writer, live = made(tty)
    live.show(["a  importing"])
    live._drawn_at += 1000.0
    for number in range(1000):
        writer.write(f"{number}\n", flush=True)
    assert sum("importing" in text for text in tty.writes) == 1
    live.show([])
    assert tty.lines == [str(number) for number in range(1000)]


def test_nobody_is_bothered_while_none_are_shown() -> None:
    tty = Tty()
    _, live = made(tty)
    untouched = dict(vars(tty))
    live.show(["a"])
    assert "write" in vars(tty)
    live.show([])
    assert {"write", "flush"}.isdisjoint(vars(tty))
    assert vars(tty).keys() == untouched.keys()


def test_somebody_who_wraps_the_file_meanwhile_or_has_wrapped_it_before_stays() -> None:
    tty = Tty()
    heard: list[str] = []
    plain = tty.write

    def before(text: str) -> int:
        heard.append(text)
        return plain(text)

    tty.write = before  # type: ignore[method-assign]
    writer, live = made(tty)
    live.show(["a"])
    guarded = tty.write
    live.show([])
    assert tty.write is before
    live.show(["a"])
    guarded = tty.write

    def meanwhile(text: str) -> int:
        return guarded(text)

    tty.write = meanwhile  # type: ignore[method-assign]
    live.show([])
    assert tty.write is meanwhile
    writer.write("end")
    assert tty.lines == ["end"]
    assert heard[-1] == "end"


def test_print_and_stderr_give_way_too_where_they_are_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    tty = Tty()
    _, live = made(tty)
    error = Tty()
    error.write = lambda text: Tty.write(tty, text)  # type: ignore[method-assign]
    monkeypatch.setattr(live_lines.sys, "stdout", tty)
    monkeypatch.setattr(live_lines.sys, "stderr", error)
    live.show(["a  importing"])
    print("hello", file=error)
    live.show(["a  importing"])
    print("world")
    live.show([])
    assert tty.lines == ["hello", "world"]
    assert "flush" not in vars(error)


@pytest.mark.parametrize("other", [None, SimpleNamespace(), object(), "closed"])
def test_what_only_looks_like_a_file_is_left_alone(monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    if other == "closed":
        other = Tty()
        other.close()
    tty = Tty()
    _, live = made(tty)
    monkeypatch.setattr(live_lines.sys, "stderr", other)
    live.show(["a"])
    live.show([])
    assert tty.lines == []


def test_what_stands_to_the_right_of_the_cursor_stays_where_others_write() -> None:
    tty = Tty()
    writer, live = made(tty, wipe=False)
    writer.write(" 45 % of a test's own\r")
    live.show(["a"])
    live.show([])
    assert tty.lines == [" 45 % of a test's own"]


def test_a_key_that_was_pressed_leaves_nothing_of_them() -> None:
    tty = Tty()
    writer, live = made(tty)
    writer.write("test_it.py ..")
    live.show(["a  importing", "b  loading"])
    # The driver's echo.
    Tty.write(tty, "\n")
    live.show(["a  importing", "b  loading"])
    assert tty.lines == ["test_it.py ..", "", "a  importing", "b  loading"]
    live.show([])
    assert tty.lines == ["test_it.py .."]


def test_the_colour_of_an_unfinished_line_is_neither_taken_nor_lost() -> None:
    tty = Tty()
    writer, live = made(tty)
    writer.write("\x1b[31mred")
    live.show(["a"])
    assert tty.screen.buffer[1][0].fg == "default"
    live.show([])
    writer.write("red")
    assert tty.screen.buffer[0][3].fg == "red"


def test_an_echo_at_the_end_of_a_full_line_leaves_nothing_of_them() -> None:
    tty = Tty()
    writer, live = made(tty)
    writer.write("passed [ 42%]".rjust(59))
    live.show(["a  importing", "b  loading"])
    Tty.write(tty, "^C")
    writer.write("\n!!!\n")
    live.show([])
    assert tty.lines == ["passed [ 42%]".rjust(59) + "^", "C", "!!!"]


@pytest.mark.parametrize("size", [(30, 10), (90, 10), (60, 6), (60, 20), (20, 5)])
def test_a_change_of_the_size_leaves_nothing(size: tuple[int, int]) -> None:
    tty = Tty(60, 10)
    writer, live = made(tty)
    writer.write("one\ntwo")
    live.show(["a" * 50, "b" * 50])
    resize(tty.screen, *size)
    # What is drawn now was made for the size before.
    live.show(["a" * 50, "b" * 50])
    live.show([])
    writer.write(".\n")
    assert tty.lines == ["one", "two."]


def test_one_write_per_drawing_and_a_flush() -> None:
    tty = Tty()
    _, live = made(tty)
    live.show(["a", "b", "c"])
    assert len(tty.writes) == 1
    assert tty.flushes == 1
    live.show([])
    assert len(tty.writes) == 2


def test_many_threads_that_show_and_write_garble_nothing(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    tty = Tty(60, 12)
    writer, live = made(tty)
    stop = threading.Event()

    def redraw() -> None:
        while not stop.is_set():
            live.show([f"server {number}  {random.random()}" for number in range(random.randint(0, 4))])

    threads = [threading.Thread(target=redraw, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(400):
        writer.write(f"report {number} ")
        writer.write("passed", flush=True)
        writer.write("\n")
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    live.show([])
    assert tty.lines == [f"report {number} passed" for number in range(400)]


def test_an_interrupt_in_a_drawing_leaves_something_that_is_erased() -> None:
    tty = Tty()
    writer, live = made(tty)
    writer.write("one")
    interrupts = [KeyboardInterrupt()]

    def interrupted() -> None:
        if interrupts:
            raise interrupts.pop()

    tty.flush = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        live.show(["a"])
    assert tty.lines == ["one", "a"]
    live.show([])
    assert tty.lines == ["one"]
    assert "write" not in vars(tty)


def test_a_forked_child_writes_without_the_lock() -> None:
    tty = Tty()
    writer, live = made(tty)
    live.show(["a"])
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with live._lock:
            held.set()
            release.wait(20)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait(20)
    live._pid = os.getpid() + 1
    writer.write("child", flush=True)
    assert tty.writes[-1] == "child"
    release.set()
    thread.join(20)
    live._pid = os.getpid()
    live.show([])


@pytest.mark.parametrize("term", ["dumb", "", "unknown", None])
def test_a_dumb_terminal_has_no_size(monkeypatch: pytest.MonkeyPatch, term: str | None) -> None:
    master, slave = os.openpty()
    with open(slave, "w") as file:
        monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((80, 24)))
        monkeypatch.setenv("TERM", "xterm")
        assert terminal_size(file) == (80, 24)
        if term is None:
            monkeypatch.delenv("TERM")
        else:
            monkeypatch.setenv("TERM", term)
        assert terminal_size(file) is None
    os.close(master)


def test_a_terminal_that_does_not_know_its_size_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    master, slave = os.openpty()
    with open(slave, "w") as file:
        assert os.get_terminal_size(file.fileno()) == (0, 0)
        assert terminal_size(file) is None
    os.close(master)
    assert terminal_size(Tty()) is None
    assert terminal_size(SimpleNamespace()) is None  # type: ignore[arg-type]
