"""Another user of the machine, played by a forked child that ends in time whatever it does."""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable

import pytest

NOBODY = 65534
LIMIT = 20.0
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")


def in_child(action: Callable[[], object], uid: int | None = None) -> str:
    """Do something in a forked child, and return what that says; a child that takes too long is killed.

    Args:
        action: What to do; what it returns comes back as text, and what it raises as ``Kind: text``.
        uid: The user to become, if not ours.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            said = str(action())
        except BaseException as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode("utf-8", "replace")[:60_000])
        os._exit(0)
    os.close(write)
    try:
        ready = select.select([read], [], [], LIMIT)[0]
        assert ready, f"the child has not ended after {LIMIT:g} s"
        with open(read, "rb", closefd=False) as file:
            return file.read().decode()
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
