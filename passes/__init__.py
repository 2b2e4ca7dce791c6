"""Graph passes of svg_compile, one a file."""
