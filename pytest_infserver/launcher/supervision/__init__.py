"""The process tree of a server, and what watches it."""
