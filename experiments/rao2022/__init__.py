"""Rao, Böhle, Schiele 2022: Towards Better Understanding Attribution Methods (arXiv 2205.10435)."""
