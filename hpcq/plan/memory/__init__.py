"""Memory model: estimated memory per GPU and host, by scheme and parallel layout."""
