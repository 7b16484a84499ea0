"""What a window of an image changes in a network."""
