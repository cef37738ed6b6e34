"""Example of a plugin of hpcq: a quantizer and a backend."""
