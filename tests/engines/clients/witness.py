"""Asks a server with one client's library and prints its verdicts as JSON.

    PYTHON -I witness.py SCRIPT URL KEY MODEL

A script has functions without an underscore, each of which asks for one thing, returns what came, and raises when that
is not what its library promises. It runs in the environment of that library, in which there is nothing of ours.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import runpy
import sys


def main() -> None:
    script, url, key, model = sys.argv[1:]
    found = runpy.run_path(script)
    verdicts = {
        name: _verdict(ask, url, key, model)
        for name, ask in found.items()
        if inspect.isfunction(ask) and ask.__code__.co_filename == script and not name.startswith("_")
    }
    print(json.dumps(verdicts))


def _verdict(ask: object, url: str, key: str, model: str) -> dict[str, str]:
    try:
        said = ask(url, key, model)
        if inspect.iscoroutine(said):
            said = asyncio.run(said)
        assert said, f"nothing came: {said!r}"
    except Exception as error:
        return {"verdict": "fails", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    return {"verdict": "passes", "said": str(said)[:200]}


if __name__ == "__main__":
    main()
