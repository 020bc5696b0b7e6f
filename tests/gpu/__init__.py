"""The tier `gpu`: real GPUs, and the same tests on a stand-in of their driver; see docs/gpu-tests.md."""
