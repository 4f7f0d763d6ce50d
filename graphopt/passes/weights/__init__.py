"""What the passes over weights share: grids of codes, recipes for streams, and the nodes that unpack."""
