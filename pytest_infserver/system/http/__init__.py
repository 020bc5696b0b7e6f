"""HTTP requests with an end."""
