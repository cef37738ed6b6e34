"""Programs that the batch script starts on a node: epilogue of a failed step, resubmission after a merge."""
