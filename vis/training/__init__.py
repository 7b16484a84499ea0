"""Train networks and stand-ins, and give methods the images that they learn from."""
