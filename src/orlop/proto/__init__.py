"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "6d882273227acdf422b7741695e07dc6f507fb8ccdc464673725a32bb4d4dcf4"  # of the files under proto/, so that a test sees stale stubs without protoc
