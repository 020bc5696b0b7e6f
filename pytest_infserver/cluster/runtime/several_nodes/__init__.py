"""The nodes of one server besides its first one: what runs there, its end, and what that means for all."""
