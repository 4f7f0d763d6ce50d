"""What share-weights is made of: codebooks, the choice of a form, and codes as standard ONNX stores them."""
