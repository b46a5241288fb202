"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "d05c25182bd3a1a871c28a0196858c70b45eca07ffd4422b0fdb0356cd2f6014"  # of the files under proto/, so that a test sees stale stubs without protoc
