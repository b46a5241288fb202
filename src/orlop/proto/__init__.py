"""Generated stubs.  Never edited: `make proto` writes them."""
