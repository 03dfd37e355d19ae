"""Pictures of arrays. Matplotlib is imported when the first one is drawn."""

from medseg.figures.three_planes import three_planes, three_planes_png

__all__ = ["three_planes", "three_planes_png"]
