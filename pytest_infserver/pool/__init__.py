"""Which test gets which server, and when."""
