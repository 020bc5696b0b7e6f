"""A backend of one's own: five methods, and nothing more."""

import sys
from pathlib import Path

from pytest_infserver import InferenceServer


class MyBackendServer(InferenceServer):
    def get_backend_name(self):
        return "mybackend"

    def get_binary_path(self):
        return sys.executable

    def get_launch_command(self):
        engine = Path(__file__).with_name("echo_engine.py")
        return [self.binary_path, str(engine), "--model", self.model, "--port", str(self.port), *self.server_args()]

    def get_health_endpoint(self):
        return f"{self.server_url}/health"

    def list_endpoints(self):
        return {"health": f"{self.server_url}/health", "api": f"{self.server_url}/api"}


class ShoutingServer(MyBackendServer):
    def get_backend_name(self):
        return "shouting"
