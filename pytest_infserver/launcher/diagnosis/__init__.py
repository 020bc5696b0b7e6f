"""What a server wrote, why it failed, and how that is said."""
