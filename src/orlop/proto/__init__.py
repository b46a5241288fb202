"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "2e4ebe52714ad0ff350e68de6dda5c1d489ecac16e9b0a69f1cf6305aef01c26"  # of the files under proto/, so that a test sees stale stubs without protoc
