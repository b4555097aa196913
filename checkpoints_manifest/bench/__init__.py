"""Scripts that print the tables in the docs: measurements, and what the audit catches."""
