"""Pictures from a run directory or a posterior: one file each, matplotlib without a display."""
