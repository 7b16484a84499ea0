"""Turn maps into pictures, and lay out figures."""
