"""Experiments: a module for each figure, table or theorem, and `visualize` for a user's own pictures."""
