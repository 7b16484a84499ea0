"""Networks as graphs: tracing them, running them by rules, and choosing the output to explain."""
