"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "5f0f2f2dbb94d142de7e2aa8232be371eca5feb3018402bfe2da550b777e4595"  # of the files under proto/, so that a test sees stale stubs without protoc
