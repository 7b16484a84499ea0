"""One run: what an experiment is, and how it is executed."""
