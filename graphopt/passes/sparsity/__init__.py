"""What sparsify-weights is made of: scores and masks."""
