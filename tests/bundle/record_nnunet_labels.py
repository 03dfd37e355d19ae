"""Record the labels of nnU-Net's own predictor for the models of nnunet_models.py.

    python tests/bundle/record_nnunet_labels.py

Needs nnU-Net 2.8.1, which `make bench` installs.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "benchmarks")]
from bundle.nnunet_models import CASES, write_model, write_scan
from nnunet_oracle import nnunet_labels

RECORD = Path(__file__).with_name("nnunet_labels.npz")


def main() -> None:
    recorded = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            model, scans = write_model(case, Path(folder) / "model"), write_scan(case, Path(folder) / "scan")
            recorded[name] = nnunet_labels(model, scans)
            if case.mirror_axes is not None:
                recorded[f"{name}, mirrored"] = nnunet_labels(model, scans, mirroring=True)
            print(name, recorded[name].shape, np.bincount(recorded[name].ravel()))
    np.savez_compressed(RECORD, **recorded)
    print(RECORD, RECORD.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
