"""One file per backend, and the registry that finds them."""
