"""Backups and restores of a whole store."""
