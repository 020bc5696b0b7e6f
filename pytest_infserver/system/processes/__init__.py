"""Processes of this machine: what runs, what belongs to whom, and how to start and end it."""
