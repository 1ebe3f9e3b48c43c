"""This machine measured, and a plan's job run on it beside its prediction."""
