"""Adebayo et al. 2018, Sanity Checks for Saliency Maps; Binder et al. 2023, Shortcomings of Top-Down Randomization-Based Sanity Checks."""
