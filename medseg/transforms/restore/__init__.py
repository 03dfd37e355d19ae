"""Restore labels to the native grid of a scan; read in this order: grid_map, resample, label_decision, native."""
