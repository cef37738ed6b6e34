"""Back end for transformers and accelerate, through lm-eval's HFLM."""
