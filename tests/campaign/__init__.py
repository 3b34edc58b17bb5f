"""Fuzz campaign: norms and Theorem 3.1 on drawn matrices against exact rationals. ``python tests/campaign --help``."""
