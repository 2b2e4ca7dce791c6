"""What runs at each forward: which denoising step it is, and which variant of the graph serves it."""
