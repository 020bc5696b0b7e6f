"""What runs a server: this process, somebody else on this machine, another process of the run, or a cluster."""
