"""Where a job that ended early goes on, and how its files are removed."""

from pathlib import Path
from typing import Any

from store.job_folders import remove_folder, remove_leftovers, restart_step


class Recorded:
    """The steps of a job, whose files lie below ``data_dir``."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.steps: list[tuple[int, Any, bool]] = []

    def step(self, failed: bool = False, **files: str) -> None:
        """Record a step that left files, by role."""
        for path in files.values():
            (self.data_dir / path).parent.mkdir(parents=True, exist_ok=True)
            (self.data_dir / path).touch()
        refs = {role: {"path": path, "digest": "sha256:0"} for role, path in files.items()}
        self.steps.append((len(self.steps) + 1, None if failed else {"files": refs}, failed))

    def restart(self) -> int:
        return restart_step(self.steps, self.data_dir)


def recorded(data_dir: Path) -> Recorded:
    """A job that came to the third of its layers."""
    job = Recorded(data_dir)
    job.steps.append((1, "2026-11-21T13:00:00Z", False))
    job.step(model="jobs/a/model")
    job.step(one="jobs/a/one")
    job.step(two="jobs/a/two")
    return job


def test_a_job_goes_on_at_the_step_that_failed(tmp_path: Path) -> None:
    job = recorded(tmp_path)
    job.step(failed=True)
    assert job.restart() == 5


def test_a_job_goes_on_after_the_last_step_that_was_recorded(tmp_path: Path) -> None:
    assert recorded(tmp_path).restart() == 5
    assert restart_step([], tmp_path) == 1


def test_a_step_whose_files_are_gone_is_done_again_and_all_after_it(tmp_path: Path) -> None:
    for lost, expected in (("two", 4), ("one", 3), ("model", 2)):
        job = recorded(tmp_path)
        job.step(failed=True)
        (tmp_path / "jobs/a" / lost).unlink()
        assert job.restart() == expected


def test_a_file_that_a_later_step_replaced_is_not_missed(tmp_path: Path) -> None:
    job = recorded(tmp_path)
    job.step(training="jobs/a/0001")
    job.step(training="jobs/a/0002")
    (tmp_path / "jobs/a/0001").unlink()
    assert job.restart() == 7
    (tmp_path / "jobs/a/0002").unlink()
    assert job.restart() == 5


def test_what_is_no_reference_counts_as_gone(tmp_path: Path) -> None:
    assert restart_step([(1, {"files": {"model": "a path"}}, False)], tmp_path) == 1
    assert restart_step([(1, {"files": None}, False)], tmp_path) == 2


def test_a_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "job" / "layers").mkdir(parents=True)
    (tmp_path / "job" / "layers" / "one").touch()
    (tmp_path / "other").mkdir()
    remove_folder(tmp_path, "job")
    remove_folder(tmp_path, "job")
    remove_folder(tmp_path, "../" + tmp_path.name)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_interrupted_removal_is_finished(tmp_path: Path) -> None:
    (tmp_path / ".removed-0" / "layers").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
