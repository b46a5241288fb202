"""Snapshots in containerd's sense, over the store: see `orlop.images.snapshots`."""
