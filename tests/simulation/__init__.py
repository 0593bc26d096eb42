"""A simulated world around the real logic: disk, network, clock and processes that fail as a seed says."""
