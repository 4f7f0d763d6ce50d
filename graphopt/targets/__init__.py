"""What an execution provider runs, and runs well, as data."""
