"""Schedule: a simulation of what Slurm does with a set of arrays."""
