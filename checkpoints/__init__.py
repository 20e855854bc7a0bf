"""What survives: every table, every query, and the embedded server. All SQL is here."""
