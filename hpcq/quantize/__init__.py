"""Quantization: creates quantized checkpoints, with one interface and one file per tool."""
