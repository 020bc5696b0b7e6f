"""Loads that are sent by a program of somebody else's, from an environment of its own."""
