"""Pictures: how maps are shown, and how a figure is laid out."""
