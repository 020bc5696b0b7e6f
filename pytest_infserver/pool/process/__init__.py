"""The pool's own process: how pytest starts it, and what the two tell each other."""
