"""Page of a report: one HTML file with tables, plots and their evidence, which needs no network and no script."""
