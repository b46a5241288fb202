"""The content-addressed store: verified blobs, and downloads in flight."""
