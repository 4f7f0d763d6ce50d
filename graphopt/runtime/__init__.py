"""onnxruntime: providers, sessions, feeds, comparison, placement, timing."""
