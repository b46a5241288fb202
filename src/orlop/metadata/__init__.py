"""What the store knows, in SQLite: the transaction is the truth."""

SCHEMA_VERSION = 6  # of meta.db: the last of the scripts in schema/
