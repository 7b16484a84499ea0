"""Sanity checks for saliency maps (Adebayo et al. 2018), and their shortcomings (Binder et al. 2023)."""
