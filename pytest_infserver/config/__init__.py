"""YAML files and keyword arguments become one frozen ServerConfig."""
