"""Recovery of units that ended early: signals, preemption, stale attempts, the retry policy."""
