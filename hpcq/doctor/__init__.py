"""Diagnosis of a machine, a cluster and a manifest: what works, and what to correct before a run is submitted."""
