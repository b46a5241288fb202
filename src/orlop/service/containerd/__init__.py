"""containerd's services, over the store: translation only."""
