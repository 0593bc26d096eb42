"""Layers whose weights have a posterior: local reparameterization, one file each."""
