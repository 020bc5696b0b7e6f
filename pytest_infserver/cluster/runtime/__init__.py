"""How this process starts, hears and stops servers on the cluster."""
