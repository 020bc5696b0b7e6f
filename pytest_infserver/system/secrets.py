"""What is a secret: the values of settings whose name says so, wherever a command or an environment has them."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

MIN_LENGTH = 8
"""Values that are shorter are no secrets: masked wherever they stand they would make texts unreadable."""

_ANYWHERE = re.compile(
    r"(?:key|authorization|.*(?:token|secret|password|passwd|passphrase|credential)"
    r"|.*(?:api|access|secret|private|auth|master|encryption|signing|ssh|license|account|client|admin|user|app|shared"
    r"|session|service|storage|deploy)key)"
)
"""A word of a name that makes it a secret's; joined forms, too, but not `monkey` and `tokenizer`."""
_AT_THE_END = frozenset({"auth", "oauth", "pat", "pass", "cred"})
"""Words that say so only at the end of a name: SSH_AUTH_SOCK is the path of a socket."""
_BEHIND_OTHERS = frozenset({"pwd"})
"""Words that say so only at the end of a name with others before: PWD alone is the working directory."""
_OF_MODELS = frozenset({"max", "min", "num", "number", "budget", "bos", "eos", "pad", "unk", "special"})
"""With one of these words in the name, tokens are what models read and write."""
_OF_PLACES = frozenset({"file", "path", "dir", "directory", "folder"})
"""With one of these words at its end a name is that of a place; what lies there is no part of a text."""
_CAPITAL_INSIDE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_OPTION = re.compile(r"--[a-z]+(?:[-_.][a-z]+)*(?:=.*)?|-[A-Za-z]{1,3}", re.DOTALL)
"""How options are spelt; no key looks like this."""
_SETTING = re.compile(r"-{0,2}([A-Za-z_][\w.-]*)=(.+)", re.DOTALL)
_URL_PASSWORD = re.compile(r"://[^/@\s:]*:([^/@\s]+(?:@[^/@\s\"'<>,;|]+)*)(?=@)")
_URL_QUERY = re.compile(r"[?&]([^=&#\s]+)=([^&#\s\"'<>]+)")
_SEPARATORS = re.compile(r"[,;\s]+")
_MAX_DEPTH = 4
"""How many layers of settings within settings are looked into."""


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Return whether a variable, flag or key holds a secret: HF_TOKEN and --api-keys do, --max-tokens does not."""
    words = re.findall(r"[a-z0-9]+", _CAPITAL_INSIDE.sub("_", name).lower())
    singular = [_singular(word) for word in words]
    if not words or singular[-1] in _OF_PLACES:
        return False
    if singular[-1] in _AT_THE_END or (len(words) > 1 and singular[-1] in _BEHIND_OTHERS):
        return True
    of_models = not _OF_MODELS.isdisjoint(words)
    return any(_ANYWHERE.fullmatch(word) and not (of_models and word.endswith("token")) for word in singular)


def _singular(word: str) -> str:
    word = word.rstrip("0123456789") or word
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def is_value(word: str, *, first: bool) -> bool:
    """Return whether a word behind a secret's flag is a value of it.

    Args:
        word: The word.
        first: Whether it comes directly behind the flag: then it may begin with a dash, as random keys do.
    """
    return not word.startswith("-") or (first and _OPTION.fullmatch(word) is None)


def find_secrets(env: Mapping[str, str | None], argv: Sequence[str]) -> frozenset[str]:
    """Return the values to hide, if 8 characters or longer.

    These are the values of variables and flags whose name says so, also of those inside of JSON, of the queries of
    URLs and of settings within a word, and the passwords of URLs.
    """
    found = {secret for name, value in env.items() if value for secret in _in_setting(name, value, _MAX_DEPTH)}
    found.update(_in_words(argv, _MAX_DEPTH))
    return frozenset(secret for secret in found if len(secret) >= MIN_LENGTH)


def url_passwords(text: str) -> Iterator[tuple[int, int]]:
    """Return where in a text the passwords of URLs stand."""
    return (match.span(1) for match in _URL_PASSWORD.finditer(text)) if "://" in text else iter(())


@functools.lru_cache(maxsize=64)
def forms(secrets: frozenset[str]) -> tuple[str, ...]:
    """Return how secrets may be written, as far as that can be seen, the longest first."""
    found = {_visible(form) for secret in secrets for form in _written(secret)}
    return tuple(sorted((form for form in found if len(form) >= MIN_LENGTH), key=lambda form: (-len(form), form)))


def _written(secret: str) -> Iterator[str]:
    yield secret
    # In a shell's command, in JSON, in Python's repr, in a URL.
    yield secret.replace("'", "'\"'\"'")
    yield from (json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    yield repr(secret)[1:-1]
    yield quote(secret, safe="", errors="surrogateescape")
    # A log may have each line of a certificate's key on its own.
    yield from (line.strip() for line in secret.splitlines())


def _visible(text: str) -> str:
    return "".join(filter(str.isprintable, text))


def _in_words(words: Sequence[str], depth: int) -> Iterator[str]:
    flag, first = "", False
    for word in words:
        if flag and is_value(word, first=first):
            yield from _in_setting(flag, word, depth)
            first = False
            continue
        is_flag = word.startswith("-") and "=" not in word and is_secret_name(word)
        flag, first = (word, True) if is_flag else ("", False)
        yield from _inside(word, depth)


def _in_setting(name: str, value: str, depth: int) -> Iterator[str]:
    # What counts tokens has a name like one that has secret ones.
    if is_secret_name(name) and not (name.lower().endswith("tokens") and value.isdigit()):
        yield value
        yield from _SEPARATORS.split(value)
        if "://" not in value:
            yield value.partition(":")[2]
        yield from _in_json(value, depth, secret=True)
    yield from _inside(value, depth)


def _inside(value: str, depth: int) -> Iterator[str]:
    """Return the secrets within a word or a value that is none as a whole."""
    if depth <= 0:
        return
    for begin, end in url_passwords(value):
        yield value[begin:end]
        yield unquote(value[begin:end])
    for name, text in _URL_QUERY.findall(value) if "=" in value else ():
        if is_secret_name(name):
            yield text
            yield unquote(text)
    setting = _SETTING.fullmatch(value)
    if setting is not None:
        yield from _in_setting(setting[1], setting[2], depth - 1)
    elif value.lstrip()[:1] in ("{", "["):
        yield from _in_json(value, depth, secret=False)
    elif " " in value and "\n" not in value and ("=" in value or "-" in value):
        # A command line in a word, as behind `sh -c` and in PYTEST_ADDOPTS.
        yield from _in_words(_split(value), depth - 1)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _in_json(text: str, depth: int, *, secret: bool) -> Iterator[str]:
    if depth > 0 and text.lstrip()[:1] in ("{", "["):
        try:
            yield from _in_data(json.loads(text), depth - 1, secret=secret)
        except (ValueError, RecursionError):
            return


def _in_data(data: Any, depth: int, *, secret: bool) -> Iterator[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            if isinstance(value, (dict, list)):
                yield from _in_data(value, depth, secret=secret or is_secret_name(name))
            elif secret or is_secret_name(name):
                yield from _in_setting("secret", str(value), depth)
            else:
                yield from _in_data(value, depth, secret=False)
    elif isinstance(data, list):
        for value in data:
            yield from _in_data(value, depth, secret=secret)
    elif secret:
        yield from _in_setting("secret", str(data), depth)
    elif isinstance(data, str):
        yield from _inside(data, depth)
