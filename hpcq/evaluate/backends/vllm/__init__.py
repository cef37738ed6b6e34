"""Backend for vLLM."""
