"""The outage spool: commits that wait in a local file while the server is away, and go there by themselves."""
