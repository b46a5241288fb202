"""What the store takes on disk, and why a thing is kept."""
