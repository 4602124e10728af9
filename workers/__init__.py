"""What runs: worker processes, recovery, the embedded server, the command line."""
