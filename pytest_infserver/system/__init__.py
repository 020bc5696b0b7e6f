"""The machine and its texts; imports nothing of the rest of the package."""
