"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "e81619b6c7729251a0070d3c1152a2fd3d8b2a4d68b59ff10a7673fbe03717eb"  # of the files under proto/, so that a test sees stale stubs without protoc
