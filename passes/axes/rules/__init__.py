"""Rules: the axes of each ATen operator's result. Without a rule the result is opaque."""
