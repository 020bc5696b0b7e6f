"""What is said of the endpoints beside chats and completions."""
