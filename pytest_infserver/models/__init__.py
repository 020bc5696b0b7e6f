"""The models named `builtin:...`, and the script that writes the smallest of them."""
