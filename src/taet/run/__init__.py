"""A run: what its folder holds, and which settings make two runs the same."""
