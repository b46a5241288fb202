"""Prepared roots: from Prepare to Cleanup, what they stand on, and the mounts of theirs."""
