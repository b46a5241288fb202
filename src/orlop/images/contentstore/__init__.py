"""containerd's content store: blobs by digest in namespaces, and writes that can be resumed."""
