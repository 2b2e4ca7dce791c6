"""Attention kernels of svg_compile: the mask's one definition, the ops, and their CPU and Triton implementations."""
