"""Networks as graphs: traced, run by rules, and what of their outputs counts."""
