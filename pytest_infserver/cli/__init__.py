"""The command ``infserver``."""
