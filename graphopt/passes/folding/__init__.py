"""What fold-constants is made of: exact kernels, regions, sizes and branches."""
