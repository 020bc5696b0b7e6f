"""Clients of a server for whoever tests it."""
