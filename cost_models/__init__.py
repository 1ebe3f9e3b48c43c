"""What a choice costs: seconds, bytes, joules and money, as formulas over arrays."""
