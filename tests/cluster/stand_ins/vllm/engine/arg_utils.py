"""What makes the configuration."""

from types import SimpleNamespace


class EngineArgs:
    def __init__(self, world_size):
        self.world_size = world_size

    def create_engine_config(self, usage_context=None, headless=False):
        assert usage_context == "API_SERVER"
        # No placement group: this is no actor of Ray's.
        return SimpleNamespace(parallel_config=SimpleNamespace(world_size=self.world_size, placement_group=None))


class AsyncEngineArgs(EngineArgs):
    pass
