"""Whether a server that runs still works."""
