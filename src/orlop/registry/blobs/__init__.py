"""Blobs down and up: streams at an offset, plans of ranges, sessions of uploads.

`downloads` opens one and `ranges` plans one over several connections; `uploads` sends, with `sessions` at the
registry, `offsets` for how far they are, and `sources` that can be opened again; `foreign` is for layers that
lie elsewhere.
"""
