"""What fuse-batchnorm is made of: reading per-channel affine maps, and folding them into weights."""
