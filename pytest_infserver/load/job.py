"""Job: all that the generator's process is told, through its standard input."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from pytest_infserver.load.workload import Workload
from pytest_infserver.system.http.address import Address

ASKED = ("prompt", "messages")
"""What of a request's body is its own; the rest is the same in all of a load."""
MOST_PROMPTS = 20_000
"""So many are made for another tool, where a duration alone decides how many it needs."""


@dataclass(frozen=True)
class Job:
    """A workload and where it goes.

    Attributes:
        address: Where the server is reached; its key is in it.
        model: The name that requests need.
        ignore_eos: Whether the engine knows ``ignore_eos``.
        uses_proxies: Whether the proxies of the environment count: for a server elsewhere.
        load: The workload.
    """

    address: Address
    model: str
    ignore_eos: bool
    uses_proxies: bool
    load: Workload

    def as_json(self) -> str:
        """Return it as one line."""
        address = {one.name: getattr(self.address, one.name) for one in dataclasses.fields(Address)}
        address["ports"] = dict(self.address.ports)
        rest = {one.name: getattr(self, one.name) for one in dataclasses.fields(Job)}
        return json.dumps({**rest, "address": address, "load": dataclasses.asdict(self.load)})

    def body(self, prompt: str | list[dict[str, Any]]) -> dict[str, Any]:
        """Return the body of a request."""
        load = self.load
        if load.api == "chat":
            asked: dict[str, Any] = {
                "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            }
        else:
            texts = [prompt] if isinstance(prompt, str) else [str(one.get("content") or "") for one in prompt]
            asked = {"prompt": "\n".join(texts)}
        asked |= {"model": self.model, "max_tokens": load.output_tokens, "temperature": 0, "stream": load.stream}
        if load.stream:
            asked["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            asked["ignore_eos"] = True
        return {**asked, **load.extra_body}


def job_from(text: str) -> Job:
    """Return what `Job.as_json` has made."""
    data = json.loads(text)
    return Job(**{**data, "address": Address(**data["address"]), "load": Workload(**data["load"])})
