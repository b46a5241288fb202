"""The store beside its names and digests: checks, and repairs."""
