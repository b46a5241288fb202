"""What the store knows, in SQLite: the transaction is the truth."""
