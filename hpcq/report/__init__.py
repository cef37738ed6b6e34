"""From merged results to tables that a person reads: rows, the pivoted table, one writer a format."""
