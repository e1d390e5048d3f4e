"""lm-evaluation-harness: one arm as its model, one task evaluated, and its own command line."""
