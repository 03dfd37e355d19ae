"""Elastic deformations for tests, which deform at every call."""

import torch

from medseg.transforms.elastic.transform import RandElasticDeformation

FORMS = ["relative", "unet_ronneberger2015", "unet3d_cicek2016"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def transform(seed=0, **arguments):
    """Make a seeded deformation with probability 1."""
    return RandElasticDeformation(**{"prob": 1.0, **arguments}).set_random_state(seed)


def all_at_once(seed=0, **arguments):
    """Make a seeded deformation with rotation, scaling and flips."""
    return transform(seed, rotation_range=0.5, scale_range=0.2, flip=(0, 1), **arguments)
