"""Takes a backend of the user's own along to nodes that cannot import it."""

from __future__ import annotations

import sys

from pytest_infserver.launcher.user_code import is_ours


def by_value(backend: type) -> bytes | None:
    """Return a class with its module's code, or None for one that comes with this package.

    Args:
        backend: The class.
    """
    module = sys.modules.get(backend.__module__)
    if is_ours(backend) or module is None:
        return None
    # Imported here only: Ray is not needed in pytest otherwise.
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    try:
        data: bytes = cloudpickle.dumps(backend)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return data
