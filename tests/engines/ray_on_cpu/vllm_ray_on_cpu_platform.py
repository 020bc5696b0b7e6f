"""The platform itself: it can be imported only where vLLM is being imported already."""

from vllm.platforms.cpu import CpuPlatform


class RayOnCpuPlatform(CpuPlatform):
    ray_device_key = "GPU"
