"""Pages over runs."""
