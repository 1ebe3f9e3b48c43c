"""Every trade-off of time, money, energy and devices."""
