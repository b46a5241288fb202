"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "dd5c588c9d1db11b8bebeb2ac9a748d682934acbe513d693fa189a1a13ff2f5d"  # of the files under proto/, so that a test sees stale stubs without protoc
