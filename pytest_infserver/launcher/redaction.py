"""Keeps secrets out of everything that this package prints, writes or raises."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SECRET_WORDS = frozenset({"key", "token", "secret", "password", "credential"})
_MIN_LENGTH = 8
_MASK = "********"


def is_secret_name(name: str) -> bool:
    """Tell whether a variable or flag holds a secret: HF_TOKEN and --api-key do, --tokenizer does not."""
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


def find_secrets(env: Mapping[str, str | None], argv: Sequence[str]) -> frozenset[str]:
    """Return the values to hide: those of variables and flags whose name says so, if 8 characters or longer."""
    found = {value for name, value in env.items() if value and is_secret_name(name)}
    secret_flag = False
    for word in argv:
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            secret_flag = is_secret_name(flag) and not equals
            if equals and is_secret_name(flag):
                found.add(value)
        elif secret_flag:
            found.add(word)
    return frozenset(value for value in found if len(value) >= _MIN_LENGTH)


def redact(text: str, secrets: frozenset[str]) -> str:
    """Return ``text`` with every secret replaced by asterisks, the longest first."""
    for secret in sorted(secrets, key=len, reverse=True):
        # The second form is how shlex.quote writes a quote.
        for form in (secret, secret.replace("'", "'\"'\"'")):
            text = text.replace(form, _MASK)
    return text
