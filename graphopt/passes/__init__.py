"""The built-in passes, one file each, registered through the same hooks as those of strangers."""
