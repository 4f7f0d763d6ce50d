"""Cross-layer equalization: where scales of channels pass through a graph, and which ones to choose."""
