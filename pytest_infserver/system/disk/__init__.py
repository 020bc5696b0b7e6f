"""Files, folders and locks on this machine's disks, in places where others may write."""
