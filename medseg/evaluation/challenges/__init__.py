"""Metrics as defined by the organisers of segmentation challenges."""
