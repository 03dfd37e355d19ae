"""Deform patches elastically; read in this order: deformation, drawing, resampling, transform."""
