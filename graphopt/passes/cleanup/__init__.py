"""Helpers of the clean-up passes: canonicalize, eliminate-dead, deduplicate and their relatives."""
