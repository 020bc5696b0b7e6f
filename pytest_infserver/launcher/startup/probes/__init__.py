"""The probes of ``ready``: each asks one question and says what it saw."""
