"""The service itself: prepare, cleanup, commit, pull, push, import, check and collection."""
