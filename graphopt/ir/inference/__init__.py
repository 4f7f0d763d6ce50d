"""Parts of shape inference: symbolic dims, contents of shape arithmetic, rules by operator, the walk."""
