"""Back end for vLLM."""
