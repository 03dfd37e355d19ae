"""Restore labels to the grid of a scan; read in this order: grid_map, resample, label_decision, restore_labels, native."""
