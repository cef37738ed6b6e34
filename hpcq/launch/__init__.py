"""Launchers, and the job that runs on a node. Imports nothing: a job's start-up pays for every import."""
