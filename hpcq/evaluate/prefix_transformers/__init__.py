"""Scoring from shared prefixes on transformers: follows the passes of `hpcq.evaluate.prefix` with KV that is kept.

Knows passes and transformers' models and caches; must not know how passes were chosen, nor tasks, shards or files.
"""
