"""Backups: the truth of a store in files, off the server. What is derived comes back from it."""
