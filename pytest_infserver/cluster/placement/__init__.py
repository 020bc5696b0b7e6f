"""What servers need, and where on the cluster there is room for them."""
