"""What an architect decides: hosts of a site, what a memory tier is worth."""
