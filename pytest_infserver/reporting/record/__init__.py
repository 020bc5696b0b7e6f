"""What a run leaves: run.json, and what is gathered for it."""
