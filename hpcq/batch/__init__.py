"""Programs that the batch shell starts on a node: the epilogue of a step, and the finalizer after a merge."""
