"""What a running server is asked to do by requests: to begin anew, to sleep and wake, to take a load."""
