"""A request as a command."""

from __future__ import annotations

import dataclasses

from pytest_infserver.conformance.asking.exchange import Request
from pytest_infserver.system.http.address import Address, parse_address


def test_a_command_can_be_copied_and_has_no_key() -> None:
    address = dataclasses.replace(parse_address("http://u:pw@h:8000/base"), api_key="secret-key-1")
    shown = Request("POST", "/v1/x", {"a": "it's"}).curl(address)
    assert shown == (
        "curl -sS -i http://h:8000/base/v1/x -H \"Authorization: Bearer $API_KEY\" -H 'Content-Type: application/json' "
        '-d \'{"a": "it\'"\'"\'s"}\''
    )


def test_a_command_of_other_kinds_of_request() -> None:
    address = Address(port=8000)
    assert Request("GET", "/health").curl(address) == "curl -sS -i http://127.0.0.1:8000/health"
    assert Request("OPTIONS", "/x").curl(address) == "curl -sS -i -X OPTIONS http://127.0.0.1:8000/x"
    assert "--unix-socket /run/x.sock" in Request("GET", "/x").curl(Address(uds="/run/x.sock"))
    huge = Request("POST", "/x", b"y" * 100_000).curl(address)
    assert huge.endswith(f"-d @BODY  # 100000 characters: {'y' * 80}...")
