"""The files that steps leave: whole or not there, and taken only as they were left."""

from pathlib import Path

import pytest

from store.errors import JobCrashed
from worker.job_files import FileRef, JobFiles


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path, "job-1")


def fill(content: bytes) -> "object":
    return lambda path: path.write_bytes(content)


def test_a_file_is_referred_to_below_the_data_directory(files: JobFiles, tmp_path: Path) -> None:
    ref = files.write("layers/conv1.bin", fill(b"abc"))
    assert ref.path == "jobs/job-1/layers/conv1.bin"
    # As `sha256sum` gives it.
    assert ref.digest.startswith("sha256:ba7816bf8f01cfea")
    assert FileRef.from_json(ref.to_json()) == ref
    assert JobFiles(tmp_path, "job-1").resolve(ref).read_bytes() == b"abc"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(files: JobFiles) -> None:
    ref = files.write("model", fill(b"old"))

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        files.write("model", fail)
    assert [path.name for path in files.folder.iterdir()] == ["model"]
    assert files.resolve(ref).read_bytes() == b"old"


@pytest.mark.parametrize("path", ["jobs/job-2/model", "jobs/job-1/../job-2/model", "/etc/passwd"])
def test_a_file_of_others_is_not_taken(tmp_path: Path, files: JobFiles, path: str) -> None:
    files.write("model", fill(b"mine"))
    other = JobFiles(tmp_path, "job-2").write("model", fill(b"theirs"))
    with pytest.raises(JobCrashed, match="missing"):
        files.resolve(FileRef(path, other.digest))


def test_a_damaged_file_is_not_taken(tmp_path: Path, files: JobFiles) -> None:
    ref = files.write("model", fill(b"right"))
    files.folder.joinpath("model").write_bytes(b"wrong")
    with pytest.raises(JobCrashed, match="damaged"):
        JobFiles(tmp_path, "job-1").resolve(ref)


def test_what_an_interrupted_write_left_is_found_and_removed(files: JobFiles) -> None:
    assert files.temporary() == []
    files.write("layers/conv1", fill(b"kept"))
    left = files.folder / "layers" / ".conv2.0123.tmp"
    left.write_bytes(b"half")
    found = files.temporary()
    assert found == [left]
    newer = files.folder / ".model.4567.tmp"
    newer.write_bytes(b"of another run")
    files.remove(found)
    files.remove(found)
    assert [path.name for path in (files.folder / "layers").iterdir()] == ["conv1"]
    assert files.temporary() == [newer]


def test_only_what_is_named_is_kept(files: JobFiles) -> None:
    for name in ("report.json", "model", "layers/conv1"):
        files.write(name, fill(b""))
    files.keep_only("report.json")
    assert [path.name for path in files.folder.iterdir()] == ["report.json"]
    files.keep_only()
    assert not files.folder.exists()
    files.keep_only()


@pytest.mark.parametrize("job_id", ["", ".", "..", "../other", "a/b", "a b", "-x"])
def test_a_job_id_that_is_no_folder_name_is_refused(tmp_path: Path, job_id: str) -> None:
    with pytest.raises(ValueError, match="folder"):
        JobFiles(tmp_path, job_id)
