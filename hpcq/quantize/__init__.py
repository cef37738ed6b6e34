"""Makes quantized checkpoints: one door, and one file a tool. Knows units and files, never plans or launchers."""
