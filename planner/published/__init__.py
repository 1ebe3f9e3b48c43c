"""Published measurements: rows read, predicted by the same code that plans, and scored."""
