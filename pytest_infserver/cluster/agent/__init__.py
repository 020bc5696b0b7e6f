"""The process of its own that is connected to Ray."""
