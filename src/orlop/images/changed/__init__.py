"""What becomes of what was written to a prepared root: commits."""
