"""What insert-qdq is made of: grids of codes, weights on them, placement by a target's rules, emission."""
