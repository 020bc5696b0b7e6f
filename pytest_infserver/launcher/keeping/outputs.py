"""Which of the files that a command names are those that its server writes: logs, state, sockets."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence

_OUTPUT = re.compile(
    r"cache|db|dump|history|journal|lock|log|logfile|out|outputs?|pid|pidfile|record|save|slots|sock|socket|sqlite|state"
    r"|stats|tmp|traces?"
)
"""Words that say so, of an option or of a file's name."""
_INPUT = re.compile(
    r"cert|cfg|conf|config|dict|format|grammar|ini|jinja|key|level|model|prompt|schema|template|tokenizer"
)
"""Words that say otherwise, whatever stands beside them: logging.config is what a server was started from."""
_CODE = (".py", ".pyc", ".pyz", ".sh", ".so", ".js", ".exe", ".jar", ".pl", ".rb")


def is_output(words: Sequence[str], path: str, begin: float) -> bool:
    """Return whether a server has written a file that its command names, as far as that can be seen.

    Nobody can be asked who has written a file that is closed again. It is taken for the server's where its name, or
    the option before it, says that it is written, and where it is from the time since the server began, or gone.

    Args:
        words: The command.
        path: The file, as the command names it.
        begin: When the server began, in seconds since the epoch.
    """
    if not _is_called_so(words, path):
        return False
    try:
        return os.stat(path).st_mtime >= begin  # noqa: PTH116
    except (OSError, ValueError):
        return True


def _is_called_so(words: Sequence[str], path: str) -> bool:
    if path.endswith(_CODE):
        return False
    said = _split(os.path.basename(path))  # noqa: PTH119
    for before, word in itertools.pairwise(["", *words]):
        if word == path and before.startswith("-"):
            said |= _split(before)
        elif word.startswith("-") and word.partition("=")[2] == path:
            said |= _split(word.partition("=")[0])
    return any(map(_OUTPUT.fullmatch, said)) and not any(map(_INPUT.fullmatch, said))


def _split(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))
