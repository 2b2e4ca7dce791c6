"""What each ATen operator does to the axes of its operands. No rule means: nothing is known of the result."""
