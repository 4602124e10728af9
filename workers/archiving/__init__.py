"""The archive: what need not stay in the server's memory is sealed, kept, read back, and only then trimmed."""
