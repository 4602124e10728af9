"""What is built from the log: views, checkpoints, their verification and their repair. All of it can be deleted."""
