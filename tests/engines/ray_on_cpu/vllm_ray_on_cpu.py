"""A platform for vLLM, for tests only: its build for CPUs, which may use Ray as that for GPUs does.

vLLM 0.32 finds it by its entry point, in Ray's workers too, before they know which GPU, in name only, is theirs.
"""


def platform():
    return f"{__name__}_platform.RayOnCpuPlatform"
