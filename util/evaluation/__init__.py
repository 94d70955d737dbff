"""The test protocol: which episodes run when, what is reused, counted and reported."""
