"""What the statements ask with."""
