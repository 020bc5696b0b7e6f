"""Starts a server with the plain Python API and keeps it up until Enter or the end of the input.

python start_server.py 8123
"""

import sys

from pytest_infserver import LlamaCppServer

with LlamaCppServer(model="builtin:tiny", port=int(sys.argv[1])) as server:
    print(f"{server.name} is ready: {server.server_url}", flush=True)
    sys.stdin.readline()
