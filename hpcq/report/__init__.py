"""Reports of merged results: rows, the pivoted table, and one formatter per output format."""
