"""The OCI documents as values: digest, reference, platform, descriptor, manifest, index, config.

No I/O.  Whatever comes from outside is parsed here, once, into a type that cannot be wrong.
"""
