"""Generated stubs.  Never edited: `make proto` writes them."""

SOURCES = "231ffeb059979cf0648b90af830d7a9795f72673f25df6f75dd75235dde4e47a"  # of the files under proto/, so that a test sees stale stubs without protoc
