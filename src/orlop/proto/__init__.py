"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "3820ab41d13f631fd672cd21e2d8e2b2dd7b33ffa5a6d9851fd6805ddada07c7"  # of the files under proto/, so that a test sees stale stubs without protoc
