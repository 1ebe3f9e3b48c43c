"""Clusters read, shown, drawn, and routed over."""
