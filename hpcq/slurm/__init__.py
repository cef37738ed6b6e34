"""Clients of Slurm's commands: squeue, scancel, scontrol, sinfo."""
