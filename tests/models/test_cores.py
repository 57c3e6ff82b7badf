"""How many cores a process may use: those it may run on, and the time that its container gets."""

import os

import pytest

from models import cores
from models.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def test_without_control_groups_all_cores_count(tmp_path):
    assert usable_cores(cgroup=tmp_path) == 8


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # a core and a half: one thread would leave the half unused
        ("1000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("max 100000\n", 8),
        ("", 8),
        ("max", 8),
        ("100000 0\n", 8),
        ("nonsense 100000\n", 8),
    ],
)
def test_a_share_of_the_processors_time_counts(tmp_path, limit, wanted):
    (tmp_path / "cpu.max").write_text(limit)
    assert usable_cores(cgroup=tmp_path) == wanted


@pytest.mark.parametrize(("quota", "wanted"), [("300000\n", 3), ("-1\n", 8), ("", 8)])
def test_so_does_one_of_the_first_version(tmp_path, quota, wanted):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(cgroup=tmp_path) == wanted


def test_where_the_system_knows_no_affinity_all_cores_count(tmp_path, monkeypatch):
    monkeypatch.delattr(cores.os, "sched_getaffinity")
    assert usable_cores(cgroup=tmp_path) == os.cpu_count()
