"""Backend for transformers and accelerate, through lm-eval's HFLM."""
