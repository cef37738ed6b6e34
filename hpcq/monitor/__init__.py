"""The state of a run as one picture, from what the store holds and what the scheduler says. The store wins."""
