"""Several kinds of devices in one plan."""
