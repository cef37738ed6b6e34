"""Clients of Slurm's commands: squeue, scontrol, sinfo."""
