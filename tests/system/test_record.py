"""What a record says of how it was made: a command that works elsewhere, without this machine."""

from pathlib import Path

import pytest

from benchmarks.record import portable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITPRESS_SHARED", str(tmp_path / "anywhere"))
    return tmp_path / "anywhere"


def test_paths_are_those_of_the_repository_and_of_the_shared_data(shared: Path) -> None:
    given = [
        *("--checkpoint", f"{shared}/checkpoints/vgg9.safetensors"),
        f"--dataset={shared}/data/cifar10.tar.xz",
        *("--folder", str(ROOT / "benchmarks/digits")),
    ]
    assert portable(given) == [
        *("--checkpoint", "../shared/checkpoints/vgg9.safetensors"),
        "--dataset=../shared/data/cifar10.tar.xz",
        *("--folder", "benchmarks/digits"),
    ]


def test_shared_data_lies_beside_the_repository_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BITPRESS_SHARED", raising=False)
    beside = ROOT.parent / "shared" / "data"
    assert portable([str(beside)]) == ["../shared/data"]


def test_of_other_folders_only_the_last_name_is_told(shared: Path) -> None:
    assert portable(["--images", "/home/someone/imagenet/"]) == ["--images", "imagenet"]


def test_where_results_go_is_left_out(shared: Path, tmp_path: Path) -> None:
    places = ["--cache", str(tmp_path), f"--json={tmp_path}/a.json", "--output", "here"]
    assert portable(["--seeds", "0,1", *places, "--validation"]) == [
        *("--seeds", "0,1"),
        "--validation",
    ]


def test_what_is_no_path_stays(shared: Path) -> None:
    given = ["--methods", "bwn,bwnh", "--mean", "0.5", "--fine-tune", "batch_size=8", "../shared"]
    assert portable(given) == given
