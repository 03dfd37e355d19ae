"""Datasets: manifests, folds, preparation, checks, and generated phantoms."""

from medseg.datasets.catalogue import describe_dataset, list_manifests, manifest_folder, read_manifest
from medseg.datasets.checks import case_problems, check_case, read_case, replace_values
from medseg.datasets.folds import case_files, fold_cases, open_folds, split_by_presence
from medseg.datasets.manifest import Case, Channel, FilePatterns, Manifest, Source, Split
from medseg.datasets.manifest_content import write_manifest
from medseg.datasets.phantoms import PhantomCase, generate_phantoms, make_phantom_case, phantom_case, phantom_id
from medseg.datasets.prepare import PreparationReport, prepare

__all__ = [
    "Case",
    "Channel",
    "FilePatterns",
    "Manifest",
    "PhantomCase",
    "PreparationReport",
    "Source",
    "Split",
    "case_files",
    "case_problems",
    "check_case",
    "describe_dataset",
    "fold_cases",
    "generate_phantoms",
    "list_manifests",
    "make_phantom_case",
    "manifest_folder",
    "open_folds",
    "phantom_case",
    "phantom_id",
    "prepare",
    "read_case",
    "read_manifest",
    "replace_values",
    "split_by_presence",
    "write_manifest",
]
