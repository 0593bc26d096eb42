"""Likelihoods p(x | outputs of a decoder): one file each."""
