"""What a session of pytest has of ours: its run, the fixtures, and the hooks of xdist's controller."""
