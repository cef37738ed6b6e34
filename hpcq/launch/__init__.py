"""Handing units to a scheduler and running them on a node. Imports nothing: a job's start-up pays for every import."""
