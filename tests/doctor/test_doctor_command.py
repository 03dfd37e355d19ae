"""The command prints a table or JSON, and its exit code tells whether there are errors."""

import json

from cli.commands import run
from doctor.data_sets import SPOILT, label_file, names, write_data_set


def spoil(folder, rule):
    next(problem for problem in SPOILT if problem.rule == rule).spoil(folder)


def test_a_clean_data_set_exits_with_0(tmp_path, capsys):
    folder = write_data_set(tmp_path / "livers")
    code, out, err = run(capsys, "doctor", folder, "--processes", 1)
    assert (code, err) == (0, "")
    assert out == "livers: 8 cases examined; no findings\n"


def test_errors_exit_with_1_and_warnings_with_0(tmp_path, capsys):
    folder = write_data_set(tmp_path / "livers")
    spoil(folder, "tiny-piece")
    code, out, _ = run(capsys, "doctor", folder)
    assert code == 0
    assert "WARNING tiny-piece" in out
    spoil(folder, "constant")
    code, out, err = run(capsys, "doctor", folder)
    assert code == 1
    assert "ERROR constant" in out
    assert err.count("\n") == 1
    assert "1 error" in err


def test_json_page_and_copy_in_one_run(tmp_path, capsys):
    folder = write_data_set(tmp_path / "livers")
    spoil(folder, "float-label")
    page, copy = tmp_path / "doctor.html", tmp_path / "copy"
    code, out, err = run(capsys, "doctor", folder, "--json", "--page", page, "--fix", copy)
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert [finding["rule"] for finding in content["findings"]] == ["float-label"]
    assert [change["case"] for change in content["copy"]["changes"]] == ["scan_007"]
    assert label_file(copy, "scan_007").is_file()
    assert "scan_007" in page.read_text(encoding="utf-8")


def test_wrong_paths_and_options_are_one_line(tmp_path, capsys):
    folder = write_data_set(tmp_path / "livers", names(5))
    for arguments in (
        (tmp_path / "nowhere",),
        (folder, "--relabel", "9=1"),
        (folder, "--fix", tmp_path / "copy", "--relabel", "nine=1"),
        (folder, "--fix", folder / "inside"),
        (folder, "--page", folder),
    ):
        code, _, err = run(capsys, "doctor", *arguments)
        assert code == 1
        assert err.count("\n") == 1
        assert str(arguments[-1]) in err or "--fix" in err
    code, out, _ = run(capsys, "doctor", tmp_path / "nowhere", "--json")
    assert code == 1
    assert "nowhere" in json.loads(out)["error"]
