"""Verification of loaded models, quantized checkpoints and responses, and the marks that every output shows."""
