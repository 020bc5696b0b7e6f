"""What the collected tests want: which servers, in which order, in which job."""
