"""What tests hold of their servers beyond one use: leases that outlive a test, and servers started anew."""
