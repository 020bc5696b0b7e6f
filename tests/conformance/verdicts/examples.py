"""Verdicts to try things on."""

from __future__ import annotations

import dataclasses

from pytest_infserver.conformance.verdicts import verdict as words
from pytest_infserver.conformance.verdicts.verdict import Difference, Verdict

PASSES = Verdict("chat", "answer", "It answers.", "The API.", "core", "one", "vllm 0.32.0", words.PASSES)
FAILS = dataclasses.replace(PASSES, verdict=words.FAILS, reason="it says nothing", curl="curl http://x")
KNOWN = Difference("chat.answer", "vllm 0.32", "it never does", "own.yaml")
