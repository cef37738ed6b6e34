"""Memory model: what each GPU and host must hold of a model, by scheme and by parallel layout."""
