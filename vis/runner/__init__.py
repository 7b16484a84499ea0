"""Experiments, and how one run of an experiment is executed."""
