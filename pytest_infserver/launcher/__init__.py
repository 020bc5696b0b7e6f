"""One server's life, from its command line to its end; knows nothing of pytest."""

import sys

if sys.platform == "win32":
    from pytest_infserver.errors import ConfigError

    raise ConfigError("pytest-infserver starts no servers on Windows, where the engines do not run: use Linux or WSL")
