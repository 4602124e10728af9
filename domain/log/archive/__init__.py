"""The archive: commits in sealed segments, in a folder or a bucket, off the server that keeps the log."""
