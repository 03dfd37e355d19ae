"""Read DICOM series and write DICOM Segmentations."""
