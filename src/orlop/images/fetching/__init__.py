"""Blobs on their way from a registry into an ingest: connections, the front, and who watches from outside."""
