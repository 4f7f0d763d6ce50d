"""Biases that make up for what a lossy step has shifted: where they stand, what they should be."""
