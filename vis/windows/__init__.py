"""Replace windows of an image and compute how the network's output changes."""
