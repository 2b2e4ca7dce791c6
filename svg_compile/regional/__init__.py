"""Compiling a model block by block: the whole model shows the grid, a marker carries it into each block."""
