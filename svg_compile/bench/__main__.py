"""`python -m svg_compile.bench` is `svg-compile bench`."""

import sys

from svg_compile.cli import main

main(["bench", *sys.argv[1:]], prog_name="svg-compile")
