"""A result card: what was measured on one model and one test set."""
