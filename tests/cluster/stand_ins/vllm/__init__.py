"""A stand-in for vLLM: as much of 0.32 as is needed to see that its Ray executor gets a placement group."""
