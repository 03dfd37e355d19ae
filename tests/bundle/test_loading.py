import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle.tiny_bundles import record_weights

import medseg
from medseg.errors import BundleError, OptionError, WeightsError


def test_the_bundle_run_and_the_predictor_give_the_same_labels(bundle, scan, run_inference):
    by_bundle = nib.load(run_inference(bundle, scan.parent) / "case_a_seg.nii.gz")
    segmentation = medseg.load(bundle).predict(scan)
    found = np.asarray(by_bundle.dataobj)
    assert len(np.unique(found)) == 3  # every class occurs, so the comparison is meaningful
    assert np.array_equal(found, segmentation.array)
    np.testing.assert_allclose(by_bundle.affine, nib.load(scan).affine, atol=1e-5)


def test_loading_runs_no_code_of_the_bundle(bundle, scan, tmp_path):
    marker = tmp_path / "executed"
    evil = f"$open({str(marker)!r}, 'w')"
    configs = bundle / "configs"
    template = json.loads((configs / "inference.json").read_text())
    (configs / "inference.json").write_text(json.dumps({**template, "imports": [evil], "network_def": evil}))
    (configs / "train.json").write_text(json.dumps({"imports": [evil], "initialize": [evil]}))
    (configs / "logging.conf").write_text(
        f"[loggers]\nkeys=root\n[handlers]\nkeys=h\n[handler_h]\nargs=({evil[1:]},)\n"
    )
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text(evil[1:])
    handlers = list(logging.getLogger().handlers)
    with pytest.warns(UserWarning, match=r"inference\.json"):
        model = medseg.load(bundle)
    model.predict(scan)
    assert not marker.exists()
    assert logging.getLogger().handlers == handlers


def test_a_pickle_with_code_is_refused(bundle, tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"weight": Payload()}, bundle / "models" / "model.pt")
    record_weights(bundle)  # even with a matching checksum
    with pytest.raises(WeightsError, match=r"model\.pt"):
        medseg.load(bundle)
    assert not marker.exists()


def test_load_network_returns_the_plans_network_with_the_promoted_weights(bundle):
    network = medseg.load_network(bundle)
    assert not network.training
    stored = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


def test_altered_weights_are_refused(bundle):
    file = bundle / "models" / "model.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.pt: .*SHA-256"):
        medseg.load(bundle)


def test_the_error_about_missing_weights_names_the_command(bundle):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(WeightsError, match=r"model\.pt: .*medseg bundle promote"):
        medseg.load(bundle)


def test_weights_without_a_recorded_checksum_are_refused(bundle):
    (bundle / "models" / "model.json").unlink()
    with pytest.raises(WeightsError, match=r"model\.json: .*weights_sha256"):
        medseg.load(bundle)


def test_folders_that_are_no_bundle_are_refused(tmp_path):
    with pytest.raises(BundleError, match=r"configs/plan\.json"):
        medseg.load(tmp_path)
    with pytest.raises(BundleError, match=r"nowhere: no such folder"):
        medseg.load(tmp_path / "nowhere")


def test_an_empty_list_of_weights_is_refused(bundle):
    with pytest.raises(OptionError, match="weights"):
        medseg.load(bundle, weights=[])


def test_weights_that_are_no_file_are_refused(bundle, tmp_path):
    for load in (medseg.load, medseg.load_network):
        with pytest.raises(WeightsError, match=r"nowhere\.pt: no such weights file"):
            load(bundle, weights=tmp_path / "nowhere.pt")
        with pytest.raises(WeightsError, match=r"found a folder"):
            load(bundle, weights=tmp_path)
    with pytest.raises(WeightsError, match=r"nowhere\.pt: no such"):
        medseg.load(bundle, weights=[bundle / "models" / "model.pt", tmp_path / "nowhere.pt"])
