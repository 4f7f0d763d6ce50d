"""Statistics of activations: where the data comes from, and what is collected on it."""
