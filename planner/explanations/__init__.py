"""Why this plan, and why not that one: solved again, not extrapolated."""
