"""What failures leave of a plan's rate."""
