"""Presolve by bounds, incumbents by balanced cuts, the last choice and the certificate by CP-SAT."""
