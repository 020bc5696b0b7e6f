"""The fixture ``response_snapshot``: answers that syrupy stores, compared with a tolerance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from syrupy.extensions.json import JSONSnapshotExtension

from pytest_infserver.launcher.operations.load_target import engine_of
from pytest_infserver.snapshots.answers import Comparison, plain_answer

if TYPE_CHECKING:
    from syrupy.assertion import SnapshotAssertion

    from pytest_infserver.launcher.server import InferenceServer


class AnswerExtension(JSONSnapshotExtension):
    """A JSON file for each answer, with the engine that has given it, which is not compared.

    Attributes:
        comparison: How the next answer is compared.
        found: What was different, and the engine of the stored answer.
    """

    comparison: ClassVar[Comparison] = Comparison()
    found: ClassVar[tuple[list[str], str]] = ([], "")

    def serialize(self, data: Any, **_: Any) -> str:
        """Return the text of the file."""
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    def matches(self, *, serialized_data: Any, snapshot_data: Any) -> bool:
        """Return whether an answer is like the stored one."""
        now, stored = json.loads(serialized_data), json.loads(snapshot_data)
        differences = type(self).comparison.differences(now["answer"], stored["answer"])
        type(self).found = differences, stored.get("engine", "")
        return not differences


class ResponseSnapshot:
    """Compares answers with those that are stored; see `__call__`."""

    def __init__(self, snapshot: SnapshotAssertion, server: InferenceServer | None, *, is_in_id: bool) -> None:
        """Compare nothing yet.

        Args:
            snapshot: syrupy's fixture.
            server: The server of the test, if it has one.
            is_in_id: Whether the test's id names it.
        """
        self._snapshot = snapshot
        self._server = server
        self._is_in_id = is_in_id
        self._numbers: Counter[str] = Counter()

    def __call__(
        self,
        answer: Any,
        rtol: float = 0.2,
        ignore: Collection[str] = ("usage",),
        server: InferenceServer | None = None,
    ) -> None:
        """Fail if an answer is not like the one that is stored; with ``--snapshot-update`` store it.

        Texts are compared exactly, log probabilities with a tolerance, token ids as far as both go. What is another
        one for each request, as ``id`` and ``created``, does not count, and a stream counts like the whole answer.

        Args:
            answer: What a client of ``openai``, ``requests`` or ``httpx`` returned, a mapping, or a stream's events.
            rtol: Share by which log probabilities may differ.
            ignore: Keys that are not compared, wherever they are.
            server: Who has answered; the test's ``inference_server`` if None.

        Raises:
            AssertionError: It is not like the stored one, or there is none.
            TypeError: It is no answer.
        """
        __tracebackhide__ = True
        who = server or self._server
        engine = "" if who is None else engine_of(who)
        AnswerExtension.comparison, AnswerExtension.found = Comparison(rtol, frozenset(ignore)), ([], "")
        stored = self._snapshot(extension_class=AnswerExtension, name=self._name(who, other=server is not None))
        data = {"engine": engine, "answer": plain_answer(answer)}
        if stored != data:
            self._fail(engine)

    def _name(self, server: InferenceServer | None, *, other: bool) -> str | None:
        """Return what an answer is called beside the test's id; None lets syrupy count."""
        if server is None or (self._is_in_id and not other):
            return None
        self._numbers[server.name] += 1
        number = self._numbers[server.name]
        return server.name if number == 1 else f"{server.name}.{number}"

    def _fail(self, engine: str) -> None:
        __tracebackhide__ = True
        differences, before = AnswerExtension.found
        result = self._snapshot.executions[len(self._snapshot.executions) - 1]
        if result.exception is not None:
            raise result.exception
        place = _short(result.snapshot_location)
        if not differences:
            raise AssertionError(f"no answer is stored at {place}: run pytest with --snapshot-update to store it")
        engines = f"of {before}" if before == engine else f"of {before or 'an unknown engine'}, this is {engine}"
        lines = "".join(f"\n  {line}" for line in differences)
        raise AssertionError(
            f"the answer is not like the one stored at {place} ({engines}):{lines}\n"
            "If it is right, run pytest with --snapshot-update."
        )


def _short(location: str) -> str:
    try:
        return str(Path(location).relative_to(Path.cwd()))
    except ValueError:
        return location
