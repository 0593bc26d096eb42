"""The recursion: posterior becomes prior, interval after interval. Nothing here imports torch or ray."""
