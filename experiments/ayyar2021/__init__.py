"""Ayyar, Benois-Pineau, Zemmari 2021: White Box Methods for Explanations of CNNs in Image Classification Tasks."""
