"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "03dd7ac5b922c4ae35af97be9dfb713c0eb5d082909731be7315f7ab2ec08d19"  # of the files under proto/, so that a test sees stale stubs without protoc
