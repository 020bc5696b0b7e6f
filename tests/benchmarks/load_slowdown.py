"""How often a comparison is right on llama.cpp: as fast as before, and held up by an artificial delay.

    python tests/benchmarks/load_slowdown.py [--trials 5] [--by 0.1]

Two servers get the load in turns. One of them is stopped for a moment again and again (SIGSTOP), so that it is slower
by the share that is asked for; the machine should be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator

from pytest_infserver import LlamaCppServer

STEP = 0.01
LOAD = {"concurrency": 1, "requests": 40, "prompt_tokens": 128, "output_tokens": 64, "warmup": 5}


@contextlib.contextmanager
def held_up(server: LlamaCppServer, share: float) -> Iterator[None]:
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(STEP * share)
            os.kill(server.pid, signal.SIGCONT)
            time.sleep(STEP)

    thread = threading.Thread(target=hold)
    if share:
        thread.start()
    yield
    over.set()
    if share:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--by", type=float, default=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(LlamaCppServer(model="builtin:tiny", name=name, output_dir=folder))
            for name in ("first", "second")
        )
        for share in (0.0, options.by):
            found: Counter[str] = Counter()
            with held_up(first, share), warnings.catch_warnings():
                warnings.simplefilter("error")
                for _ in range(options.trials):
                    try:
                        first.load(**LOAD).assert_not_slower(by=options.by, than=second.load(**LOAD))
                        found["not slower"] += 1
                    except (AssertionError, UserWarning) as verdict:
                        found[str(verdict).partition(": ")[2].partition(" (")[0]] += 1
                        print(verdict, flush=True)
            print(f"held up by {100 * share:.0f} %: {dict(found)}", flush=True)


if __name__ == "__main__":
    main()
