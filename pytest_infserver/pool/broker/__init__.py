"""One pool for the workers of xdist: it lives in the controller, which they ask."""
