"""Fits of the calibration to the data that the project carries."""
