"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "afa3e7f6576acb43833c3cc23e40c93cf32030b4d7a68e7dd1e0d0b68185286a"  # of the files under proto/, so that a test sees stale stubs without protoc
