"""One server's life, from its command line to its end; knows nothing of pytest."""

import sys

from pytest_infserver.errors import ConfigError

if sys.platform == "win32":
    raise ConfigError("pytest-infserver starts no servers on Windows, where the engines do not run: use Linux or WSL")
