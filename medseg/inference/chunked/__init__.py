"""Segment volumes that are larger than memory, from one Zarr store to another.

Read in this order: model_image, intensities, strips, prediction.
"""
