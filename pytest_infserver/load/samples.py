"""Sample: what one request has shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One request; times are in seconds from the begin of the load on.

    Attributes:
        due: When it was to be sent: in an open loop as its arrival says, else when it was sent.
        sent: When it was sent.
        first: When the first part of the answer's text came, or None.
        ended: When the answer was complete, or had failed.
        gaps: Times between the parts of the answer.
        prompt_tokens: What the engine's ``usage`` says, or None.
        output_tokens: The same of the answer.
        failure: Of which kind its failure is, or None.
        text: What was said about that.
        last: When the last part of the text came, where the single gaps are not known, else None.
    """

    due: float
    sent: float
    first: float | None
    ended: float
    gaps: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    failure: str | None = None
    text: str | None = None
    last: float | None = None

    @property
    def ttft(self) -> float | None:
        """Time to the first token, from when it was due on."""
        return None if self.first is None else self.first - self.due

    @property
    def e2e(self) -> float:
        """Time to the end, from when it was due on."""
        return self.ended - self.due

    @property
    def tpot(self) -> float | None:
        """Time for each token after the first, whatever parts they came in."""
        if self.output_tokens is None or self.output_tokens < 2:
            return None
        if self.first is not None and self.last is not None:
            return (self.last - self.first) / (self.output_tokens - 1)
        return sum(self.gaps) / (self.output_tokens - 1) if self.gaps else None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def sample_from(data: dict[str, Any]) -> Sample:
    """Return what `Sample.as_dict` has made, read from JSON."""
    known = {one.name for one in fields(Sample)}
    return Sample(**{**{name: value for name, value in data.items() if name in known}, "gaps": tuple(data["gaps"])})
