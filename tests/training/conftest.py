import pytest

from medseg.plan import Plan


@pytest.fixture
def plan() -> Plan:
    return Plan(
        name="tiny",
        spatial_dims=3,
        channels=[{"name": "image", "modality": "MR"}],
        labels={"background": 0, "thing": 1},
        orientation="RAS",
        spacing=[1, 1, 1],
        normalization=[{"scheme": "z_score"}],
        patch=[8, 8, 8],
        tile=[8, 8, 8],
        network={
            "name": "unet3d_cicek2016",
            "arguments": {"channels": [4, 8], "norm": "instance", "padding": "same"},
        },
    )
