"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "941f39b058ae8a9fb43a3468fd2c910dde4bf305b3ff083cbc31fa6888f7c445"  # of the files under proto/, so that a test sees stale stubs without protoc
