"""The command line: one file per verb. Nothing here loads torch or ray before a verb needs it."""
