"""Exponential families q: one file each, NumPy only."""
