"""Prefix-shared scoring on transformers: forward passes that reuse the KV cache of shared prefixes."""
