"""How a layer's tar becomes the blob that a registry gets: compression by recipes, plain or seekable.

- `recipes`: the names of ways to compress, which are kept beside a blob's digest;
- `parallel`: work on pieces of a stream, in threads, in order;
- `streams`: a tar as one gzip member, or as zstd frames;
- `contents`: a layer's entries as the seekable forms list them, from its index;
- `zstdchunked`, `estargz`: the seekable forms;
- `packer`: any of them, by a recipe.

Invariant: one recipe and one tar give the same bytes, whatever the number of threads and whenever its chunks
come, as long as the compressing library stays the same.  Where another version of it gives others, the
digest that is kept beside the recipe tells.
"""
