"""The processes below a supervisor: which they are, when they end, and what they hold."""
