"""Where the bytes of a node's log stand in the copy, whatever the disk takes of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_infserver.cluster.runtime import log_copy as module
from pytest_infserver.cluster.runtime.log_copy import LogCopy


class Stand:
    """An ``os`` whose ``write`` obeys the test."""

    close = staticmethod(os.close)

    def __init__(self, write: Callable[[int, memoryview], int]) -> None:
        self.write = write


@settings(deadline=None, max_examples=200)
@given(
    base=st.binary(max_size=5),
    pieces=st.lists(st.tuples(st.binary(min_size=1, max_size=8), st.integers(0, 8)), max_size=12),
    overlap=st.integers(0, 20),
)
def test_each_byte_is_found_where_it_was_written(base: bytes, pieces: list[tuple[bytes, int]], overlap: int) -> None:
    room = 0

    def write(handle: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError("no room")
        done = os.write(handle, data[: min(room, 3)])
        room -= done
        return done

    problems: list[OSError] = []
    original, places = b"", []
    with tempfile.TemporaryFile() as file:
        file.write(base)
        file.flush()
        copy = LogCopy(os.dup(file.fileno()), len(base), problems.append)
        module.os, real = Stand(write), module.os  # type: ignore[assignment]
        try:
            for piece, room in pieces:
                # It may have been brought before, in part.
                start = max(0, len(original) - overlap)
                places += [(len(original) + at, byte) for at, byte in enumerate(piece[:room])]
                original += piece
                copy.take(original[start:], start)
                assert copy.received == len(original)
                assert copy.place(len(original)) == file.seek(0, os.SEEK_END)
        finally:
            module.os = real
        copy.close()
        file.seek(0)
        written = file.read()
    assert len(written) == len(base) + len(places)
    assert [written[copy.place(at)] for at, _ in places] == [byte for _, byte in places]
    assert len(problems) == any(room < len(piece) for piece, room in pieces)


def test_without_a_file_all_is_lost() -> None:
    copy = LogCopy(None, 7, lambda error: None)
    copy.take(b"abc", 0)
    assert (copy.received, copy.place(0), copy.place(3), copy.place(9)) == (3, 7, 7, 7)
    copy.close()


def test_what_has_not_come_yet_stands_behind_the_rest() -> None:
    with tempfile.TemporaryFile() as file:
        copy = LogCopy(os.dup(file.fileno()), 0, lambda error: None)
        copy.take(b"abc", 0)
        assert copy.place(10) == 10
        copy.close()
        copy.take(b"defg", 3)
        # No more of it is going to be written.
        assert copy.place(10) == 3
