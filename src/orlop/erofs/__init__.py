"""EROFS as an on-disk format: nodes in, an image out, and back.

Knows nothing of container images or layers.  The images written here hold metadata only; the bytes
of files lie in other files, which the superblock lists as extra devices.
Source: the kernel's fs/erofs/erofs_fs.h; facts measured by mounting.
"""
