"""What an engine's own parser of its command line accepts, and what of a configuration it would refuse."""
