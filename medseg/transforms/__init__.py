"""Transforms that MONAI lacks, or lacks in a form that never invents labels.

Each has an array form and a dictionary form (with the suffix `d`, also `D` and `Dict`, as in MONAI). The names are
imported when they are first used, so that `import medseg.transforms` stays cheap.
"""

from typing import TYPE_CHECKING

from medseg.lazy_names import lazy_names

if TYPE_CHECKING:
    from medseg.transforms.boundary_weight import (
        BoundaryWeightMap,
        BoundaryWeightMapD,
        BoundaryWeightMapd,
        BoundaryWeightMapDict,
        BoundaryWeights,
        boundary_weight_map,
    )
    from medseg.transforms.crop_by_label import (
        RandCropByLabel,
        RandCropByLabelD,
        RandCropByLabeld,
        RandCropByLabelDict,
    )
    from medseg.transforms.elastic.deformation import Deformation
    from medseg.transforms.elastic.transform import (
        RandElasticDeformation,
        RandElasticDeformationD,
        RandElasticDeformationd,
        RandElasticDeformationDict,
    )
    from medseg.transforms.intensity import (
        NormalizeIntensityByModality,
        NormalizeIntensityByModalityD,
        NormalizeIntensityByModalityd,
        NormalizeIntensityByModalityDict,
    )
    from medseg.transforms.labelled_slices import (
        KeepLabelledSlices,
        KeepLabelledSlicesD,
        KeepLabelledSlicesd,
        KeepLabelledSlicesDict,
    )
    from medseg.transforms.restore.native import (
        RestoreToNative,
        RestoreToNativeD,
        RestoreToNatived,
        RestoreToNativeDict,
    )
    from medseg.transforms.slice_spacing import SliceSpacing, SliceSpacingD, SliceSpacingd, SliceSpacingDict
    from medseg.transforms.voxel_index import (
        LabelVoxelIndex,
        LabelVoxelIndexD,
        LabelVoxelIndexd,
        LabelVoxelIndexDict,
        VoxelIndex,
    )

__all__ = [
    "BoundaryWeightMap",
    "BoundaryWeightMapD",
    "BoundaryWeightMapDict",
    "BoundaryWeightMapd",
    "BoundaryWeights",
    "Deformation",
    "KeepLabelledSlices",
    "KeepLabelledSlicesD",
    "KeepLabelledSlicesDict",
    "KeepLabelledSlicesd",
    "LabelVoxelIndex",
    "LabelVoxelIndexD",
    "LabelVoxelIndexDict",
    "LabelVoxelIndexd",
    "NormalizeIntensityByModality",
    "NormalizeIntensityByModalityD",
    "NormalizeIntensityByModalityDict",
    "NormalizeIntensityByModalityd",
    "RandCropByLabel",
    "RandCropByLabelD",
    "RandCropByLabelDict",
    "RandCropByLabeld",
    "RandElasticDeformation",
    "RandElasticDeformationD",
    "RandElasticDeformationDict",
    "RandElasticDeformationd",
    "RestoreToNative",
    "RestoreToNativeD",
    "RestoreToNativeDict",
    "RestoreToNatived",
    "SliceSpacing",
    "SliceSpacingD",
    "SliceSpacingDict",
    "SliceSpacingd",
    "VoxelIndex",
    "boundary_weight_map",
]

_MODULES = {
    "BoundaryWeightMap": "boundary_weight",
    "BoundaryWeights": "boundary_weight",
    "boundary_weight_map": "boundary_weight",
    "RandCropByLabel": "crop_by_label",
    "Deformation": "elastic.deformation",
    "RandElasticDeformation": "elastic.transform",
    "NormalizeIntensityByModality": "intensity",
    "KeepLabelledSlices": "labelled_slices",
    "RestoreToNative": "restore.native",
    "SliceSpacing": "slice_spacing",
    "LabelVoxelIndex": "voxel_index",
    "VoxelIndex": "voxel_index",
}


def _array_form(name: str) -> str:
    return name if name in _MODULES else name.removesuffix("Dict").removesuffix("d").removesuffix("D")


__getattr__, __dir__ = lazy_names(__name__, {name: _MODULES[_array_form(name)] for name in __all__})
