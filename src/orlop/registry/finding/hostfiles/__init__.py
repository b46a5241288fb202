"""The files in which a machine's owner says how registries are reached.

containerd's `hosts.toml`, Docker's `certs.d`, and `registries.conf` of podman and skopeo.  Parsing is apart
from reading: `hosts_toml` and `registries_conf` turn bytes into values, `folders` finds and reads.  What is
no file of root's or one's own, or can be written by others, is refused: it would decide where credentials go.
"""
