"""Benchmarks: `svg-compile bench attention | block | forward | trace | page`, or `python -m svg_compile.bench`.

Everything that is compared is timed in one run, in turns, and stored as JSON with the machine and the versions; tables
and plots are made from the stored files.
"""
