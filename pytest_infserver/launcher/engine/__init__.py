"""What is known of an engine: arguments, options, versions, endpoints."""
