"""What teaches gates: one objective per file."""
