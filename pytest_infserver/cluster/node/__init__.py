"""What runs on the node of a server: a Ray actor with the launcher that also runs on one machine."""
