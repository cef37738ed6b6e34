"""Vocabulary and small services that all other packages use: work records, addresses, errors, files, locks."""
