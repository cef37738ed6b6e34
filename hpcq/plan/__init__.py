"""From a resolved manifest to units of work, and from the units that are missing to arrays.

Submits and writes nothing.
"""
