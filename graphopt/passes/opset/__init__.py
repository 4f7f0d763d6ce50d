"""What upgrade-opset knows about the versions of operators."""
