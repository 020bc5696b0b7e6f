"""Profilers: one file per tool, and what they have in common."""
