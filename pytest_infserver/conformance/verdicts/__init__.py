"""What became of a statement, and the differences that are known."""
