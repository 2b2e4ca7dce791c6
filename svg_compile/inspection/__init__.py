"""Looking at what the backend does: explain, cost, dumps, recordings, bisection and pictures."""
