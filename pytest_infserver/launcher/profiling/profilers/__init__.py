"""One file for each profiler."""
