import pytest

from medseg.volumes.files import file_sha256


def test_the_digest_is_that_of_the_standards_examples(tmp_path):
    file = tmp_path / "file"
    # FIPS 180-2, B.1 and the empty message
    for content, digest in (
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ):
        file.write_bytes(content)
        assert file_sha256(file) == file_sha256(str(file)) == digest


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "absent")
