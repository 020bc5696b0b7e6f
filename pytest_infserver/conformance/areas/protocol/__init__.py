"""What is said of requests and connections, whatever they ask for."""
