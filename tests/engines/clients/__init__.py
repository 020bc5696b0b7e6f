"""Real clients as witnesses: each script runs in the environment of its library, alone, see `witness.py`."""
