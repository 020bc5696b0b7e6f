"""The llama.cpp server that runs in Python, and the flags of llama-server that it takes."""
