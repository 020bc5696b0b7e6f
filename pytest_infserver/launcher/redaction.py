"""Keeps secrets out of everything that this package prints, writes or raises."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SECRET_WORDS = frozenset({"key", "token", "secret", "password", "credential"})
_MIN_LENGTH = 8
MASK = "********"
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]+(?=@)")


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
    """Return ``text`` with every secret replaced by asterisks, the longest first, and the passwords of all URLs."""
    for form in _forms(secrets):
        text = text.replace(form, MASK)
    return _URL_PASSWORD.sub(rf"\1:{MASK}", text) if "://" in text else text


def margin(secrets: frozenset[str]) -> int:
    """Return how many bytes before a part of a text `mask_cut` has to know."""
    return max((len(_encoded(form)) for form in _forms(secrets)), default=0)


def mask_cut(before: bytes, data: bytes, secrets: frozenset[str]) -> bytes:
    """Return a part of a text with the secrets masked, those that its two ends have cut, too.

    Args:
        before: What stands before the part, as far as `margin` says.
        data: The part.
        secrets: Values to hide.
    """
    forms, mask = [_encoded(form) for form in _forms(secrets)], MASK.encode()
    for form in forms:
        window = before[-len(form) :]
        at = (window + data[: len(form)]).find(form, max(0, len(window) - len(form) + 1))
        if -1 < at < len(window):
            data = mask + data[at + len(form) - len(window) :]
    for form in forms:
        data = data.replace(form, mask)
    for form in forms:
        for length in range(len(form) - 1, _MIN_LENGTH - 1, -1):
            if data.endswith(form[:length]):
                return data[:-length] + mask
    return data


def _forms(secrets: frozenset[str]) -> list[str]:
    """Return how secrets may be written, the longest first."""
    # The second form is how shlex.quote writes a quote.
    found = {form for secret in secrets for form in (secret, secret.replace("'", "'\"'\"'"))}
    return sorted(found, key=len, reverse=True)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
