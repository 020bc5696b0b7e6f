"""What is said of the answers that a model generates."""
