"""What the machines are: parts with sourced figures, and clusters built from them."""
