"""Which server runs when, and who gets it."""
