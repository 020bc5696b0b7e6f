"""Servers that live on from one run to the next."""
