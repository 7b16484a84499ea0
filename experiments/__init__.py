"""Experiments: one module for each figure, table or theorem; `visualize` for pictures of one's own."""
