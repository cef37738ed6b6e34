"""Open a run: load and lock its manifest, plan it, check that it can be submitted here."""
