"""Policy of prune-channels: criteria, allocation, cost, oracle; the algebra is graphopt.ir.channels."""
