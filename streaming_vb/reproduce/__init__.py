"""Figures of the papers behind this project, one file each: `streaming-vb reproduce NAME`."""
