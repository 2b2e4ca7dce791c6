"""Axis inference: what each axis of each tensor in a graph is, and which of them are the video's tokens."""
