"""Backends: one interface, and one package or file per engine."""
