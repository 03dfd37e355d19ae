"""Restore labels to a scan's grid; read in this order: grid_map, resample, label_decision, restore_labels, native."""
