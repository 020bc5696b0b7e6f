"""Answers of servers that are compared with stored ones, as far as two runs of an engine can be the same."""
