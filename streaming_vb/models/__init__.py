"""Models whose weights have a posterior: one file each."""
