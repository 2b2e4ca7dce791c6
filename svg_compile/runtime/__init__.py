"""The runtime: finds each forward's denoising step, and runs the dense or the sparse variant of the graph."""
