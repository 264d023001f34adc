"""Training: the loop, its state, and what a detector's or a classifier's run needs."""
