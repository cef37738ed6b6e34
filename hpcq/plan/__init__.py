"""The planner: turns a resolved manifest into units of work, and missing units into arrays.

It submits and writes nothing.
"""
