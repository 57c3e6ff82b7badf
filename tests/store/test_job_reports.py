"""A job's own copy of its report."""

from pathlib import Path

import pytest

from store.errors import NotFound, Unavailable
from store.job_reports import read_job_report


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs"
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "report.json").write_text('{"seed": 7}')
    return folder


def test_a_report_is_read_as_it_was_written(jobs_dir: Path) -> None:
    assert read_job_report(jobs_dir, "one") == {"seed": 7}


@pytest.mark.parametrize(
    "job_id", ["two", "", ".", "..", "../jobs/one", "one/", "one\n", "a" * 200]
)
def test_no_other_file_is_a_report(jobs_dir: Path, job_id: str) -> None:
    (jobs_dir.parent / "report.json").write_text("{}")
    (jobs_dir / "report.json").write_text("{}")
    with pytest.raises(NotFound) as caught:
        read_job_report(jobs_dir, job_id)
    assert caught.value.remedy


@pytest.mark.parametrize("content", [b"", b'{"seed": 7', b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_report_is_unavailable(jobs_dir: Path, content: bytes) -> None:
    (jobs_dir / "one" / "report.json").write_bytes(content)
    with pytest.raises(Unavailable) as caught:
        read_job_report(jobs_dir, "one")
    assert str(jobs_dir) not in str(caught.value.problem())
