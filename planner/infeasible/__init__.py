"""Why nothing fits, and the minimal sets of changes after which something does."""
