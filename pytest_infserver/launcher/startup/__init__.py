"""From the command to a server that is ready."""
