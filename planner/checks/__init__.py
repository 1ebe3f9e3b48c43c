"""Plans checked, and their proofs derived again, by other code than the search's."""
