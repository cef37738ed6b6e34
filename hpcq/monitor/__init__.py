"""State of a run, from the store and from Slurm. Where the two differ, the store counts."""
