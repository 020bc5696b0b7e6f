"""The grid: on the terminal, as JSON, as a page."""
