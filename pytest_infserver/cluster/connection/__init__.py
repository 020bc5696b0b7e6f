"""How pytest reaches that process, and what it says of the cluster's nodes."""
