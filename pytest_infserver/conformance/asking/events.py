"""Server-sent events: the framing of streams."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event of a stream.

    Attributes:
        data: What it says.
        name: Its kind; "" without one.
    """

    data: str
    name: str = ""

    def json(self) -> dict[str, Any]:
        """Return the JSON object that it has.

        Raises:
            AssertionError: It has none.
        """
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError):
            raise AssertionError(f"an event is not JSON: {self.data[:200]}") from None
        assert isinstance(value, dict), f"an event is no JSON object: {self.data[:200]}"
        return value


def events_of(body: bytes) -> list[Event]:
    """Return the events of a whole stream, as the standard has it: lines of fields, an empty line after each.

    Raises:
        AssertionError: It is not such a stream.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AssertionError(f"a stream is not UTF-8: {error.reason} at byte {error.start}") from None
    events: list[Event] = []
    data: list[str] = []
    name = ""
    for line in re.split(r"\r\n|\n|\r", text):
        if not line:
            if data:
                events.append(Event("\n".join(data), name))
            data, name = [], ""
            continue
        key, _, value = line.partition(":")
        assert key in ("", "data", "event", "id", "retry"), f"a line of a stream is no field of an event: {line[:200]}"
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            name = value
    assert not data, f"the last event has no empty line after it: {' '.join(data)[:200]}"
    assert events, "a stream has no event"
    return events
