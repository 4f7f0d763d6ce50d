"""Depth pruning: whole residual branches go, and what stays makes up for them."""
