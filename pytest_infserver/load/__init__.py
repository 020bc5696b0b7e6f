"""Load on a running server and what it shows: speed, baselines, scores. Knows nothing of pytest."""
