"""What is checked of a server's settings before anything is started."""
