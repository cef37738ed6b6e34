"""Catalog of models, GPUs, kernels, schemes and tasks: TOML files, and modules that read them as typed records."""
