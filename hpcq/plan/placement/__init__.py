"""Placement: GPU class, nodes, GPUs and shards for each unit."""
