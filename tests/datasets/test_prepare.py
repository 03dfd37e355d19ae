"""Preparation: adopt, link, download and generate; repeated runs; atomic writing; the source stays unchanged."""

import functools
import hashlib
import http.server
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets.manifests import IDS, changed, write_case, write_manifest

from medseg.datasets import prepare, read_manifest
from medseg.errors import ManifestError, OptionError

SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for case_id in IDS[:4]:
        write_case(tmp_path / "source", case_id)
    return tmp_path / "source"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path, changed())


def test_existing_cases_are_adopted_and_missing_ones_named(tmp_path: Path, source: Path, manifest: Path) -> None:
    before = snapshot(source)
    report = prepare(manifest, tmp_path / "root", source)
    assert report.present == ("a1", "a2", "b1", "c1")
    assert report.absent == ("d1", "e1")
    assert (report.method, report.num_written, report.is_usable) == ("adopted", 8, True)
    first, second = report.lines()[:2]
    assert all(fact in first for fact in ("tiny", "4 of 6", "adopted", str(tmp_path / "root")))
    assert "d1, e1" in second
    assert json.loads(json.dumps(report.to_dict()))["absent"] == ["d1", "e1"]
    assert snapshot(source) == before
    assert snapshot(tmp_path / "root") == before


def test_a_second_run_writes_only_lost_and_damaged_files(tmp_path: Path, source: Path, manifest: Path) -> None:
    root = tmp_path / "root"
    prepare(manifest, root, source)
    assert prepare(manifest, root, source).num_written == 0
    (root / "labels/a2.nii.gz").unlink()
    (root / "images/b1.nii.gz").write_bytes(b"cut")
    assert prepare(manifest, root, source).num_written == 2
    assert snapshot(root) == snapshot(source)


def test_links(tmp_path: Path, source: Path, manifest: Path) -> None:
    root = tmp_path / "root"
    report = prepare(manifest, root, source, link=True)
    assert report.method == "linked"
    assert (root / "images/a1.nii.gz").is_symlink()
    assert (root / "images/a1.nii.gz").samefile(source / "images/a1.nii.gz")
    assert prepare(manifest, root, source, link=True).num_written == 0
    (tmp_path / "root").rename(tmp_path / "root2")  # relative links move along
    assert (tmp_path / "root2/images/a1.nii.gz").exists()


def test_files_are_verified_in_place(tmp_path: Path, source: Path, manifest: Path) -> None:
    before = snapshot(source)
    assert prepare(manifest, source, source).num_written == 0
    assert snapshot(source) == before


@pytest.mark.parametrize("inner", ["", "Tiny"])
def test_the_layout_of_the_archive_is_found(tmp_path: Path, manifest: Path, inner: str) -> None:
    for case_id in IDS:
        write_case(tmp_path / "msd" / inner, case_id, folders=("imagesTr", "labelsTr"))
    report = prepare(manifest, tmp_path / "root", tmp_path / "msd")
    assert report.present == tuple(IDS)
    assert (tmp_path / "root/images/e1.nii.gz").is_file()


def test_a_bad_case_is_listed_and_not_copied(tmp_path: Path, source: Path, manifest: Path) -> None:
    bad = source / "images/a2.nii.gz"
    bad.write_bytes(bad.read_bytes()[:50])
    (source / "labels/b1.nii.gz").unlink()
    report = prepare(manifest, tmp_path / "root", source)
    assert report.present == ("a1", "c1")
    assert report.absent == ("b1", "d1", "e1")
    assert len(report.problems) == 1
    assert report.problems[0].startswith(f"case a2: {bad}: ")
    assert not report.is_usable
    assert "2 of 6 cases" in report.lines()[0]
    assert sorted(path.name for path in (tmp_path / "root").rglob("a2*")) == []


def test_progress_is_reported(tmp_path: Path, source: Path, manifest: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    prepare(manifest, tmp_path / "root", source, on_case=lambda *call: calls.append(call))
    assert calls == [(case_id, number, 6) for number, case_id in enumerate(IDS)]


def test_folders_that_cannot_be_used(tmp_path: Path, source: Path, manifest: Path) -> None:
    with pytest.raises(ManifestError, match=f"{tmp_path / 'absent'}.*tiny"):
        prepare(manifest, tmp_path / "root", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=rf"{tmp_path / 'empty'}.*tiny.*images/a1\.nii\.gz, .*Tr"):
        prepare(manifest, tmp_path / "root", tmp_path / "empty")
    with pytest.raises(ManifestError, match=r"tiny.*--from"):
        prepare(manifest, tmp_path / "root")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=f"{tmp_path / 'file'}"):
        prepare(manifest, tmp_path / "file" / "root", source)


# ---- download: a real server on this machine ---------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "www").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as instance:
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{instance.server_port}"
        instance.shutdown()


def publish(tmp_path: Path, url: str, md5: str | None = None) -> Path:
    for case_id in IDS:
        write_case(tmp_path / "Tiny", case_id, folders=("imagesTr", "labelsTr"))
    archive = tmp_path / "www/Tiny.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "Tiny", "Tiny")
    source = changed()["source"] | {"url": f"{url}/Tiny.tar"}
    source["md5"] = md5 or hashlib.md5(archive.read_bytes()).hexdigest()
    return write_manifest(tmp_path, changed(source=source))


def test_a_download_is_verified_and_its_archive_deleted(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, root = publish(tmp_path, server), tmp_path / "root"
    report = prepare(manifest, root)
    assert report.present == tuple(IDS)
    assert report.method == "downloaded"
    assert sorted(path.name for path in root.iterdir()) == ["images", "labels"]
    assert capsys.readouterr().out == ""  # stdout belongs to the command's own output
    (tmp_path / "www/Tiny.tar").unlink()
    assert prepare(manifest, root).method == "verified"  # without a request, because no file is missing


def test_an_interrupted_download_is_repeated(tmp_path: Path, server: str) -> None:
    manifest, root = publish(tmp_path, server), tmp_path / "root"
    staging = root / ".download"
    (staging / "unpacked/Tiny/imagesTr").mkdir(parents=True)
    (staging / "unpacked/Tiny/imagesTr/a1.nii.gz").write_bytes(b"half")  # MONAI alone would regard this as complete
    (staging / "Tiny.tar").write_bytes(b"half")
    assert prepare(manifest, root).present == tuple(IDS)


def test_wrong_checksum_and_no_network(tmp_path: Path, server: str) -> None:
    manifest = publish(tmp_path, server, md5="0" * 32)
    with pytest.raises(ManifestError, match=f"md5 {'0' * 32}"):
        prepare(manifest, tmp_path / "root")
    (tmp_path / "www/Tiny.tar").unlink()
    with pytest.raises(ManifestError, match=r"404.*--from") as caught:
        prepare(manifest, tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "root/images").exists()
    write_case(tmp_path / "root", "a1")
    with pytest.raises(ManifestError, match="1 of 6 cases"):
        prepare(manifest, tmp_path / "root")


# ---- the shipped data sets ---------------------------------------------------------------------------------------


def test_generates_phantoms(tmp_path: Path) -> None:
    content = {
        "name": "small",
        "files": {f"{role}": f"{role}s/{{case}}.nii.gz" for role in ("image", "label")}
        | {"instances": "instances/{case}.nii.gz"},
        "labels": {"background": 0, "round": 1, "elongated": 2},
        "cases": ["phantom_000", "phantom_001"],
        "folds": {},
        "test_fold": None,
        "source": {"generator": "phantom_cells", "arguments": {"seed": 3, "shape": [24, 24, 12]}},
    }
    path = write_manifest(tmp_path, changed(**content))
    report = prepare(path, tmp_path / "root")
    assert (report.method, report.present) == ("generated", ("phantom_000", "phantom_001"))
    assert prepare(path, tmp_path / "root").method == "verified"
    (tmp_path / "root/labels/phantom_001.nii.gz").unlink()
    assert prepare(path, tmp_path / "root").present == ("phantom_000", "phantom_001")
    for wrong, facts in [
        ({"generator": "cats"}, "'cats'.*phantom_cells"),
        ({"generator": "phantom_cells", "arguments": {"colour": 1}}, "source.arguments.*colour"),
    ]:
        bad = write_manifest(tmp_path / "bad", changed(**content | {"source": wrong}))
        with pytest.raises(ManifestError, match=facts):
            prepare(bad, tmp_path / "other")


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
def test_adopts_208_of_260_hippocampi(tmp_path: Path) -> None:
    report = prepare("hippocampus", tmp_path, SHARED / "hippocampus")
    assert (len(report.present), len(report.absent), report.problems) == (208, 52, ())
    assert set(report.absent) == set(read_manifest("hippocampus").folds[0])


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
def test_adopts_24_of_30_em_slices(tmp_path: Path) -> None:
    report = prepare("em_membrane", tmp_path, SHARED / "em_membrane", link=True)
    assert (len(report.present), len(report.absent), report.problems) == (24, 6, ())
