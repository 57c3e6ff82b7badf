import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]


@pytest.fixture
def detail(dataset_record: Callable[..., Any]) -> dict[str, Any]:
    return dataset_record(
        source="folders",
        counts={"train": {"cat": 3, "dog": 1}, "test": {"cat": 2}},
        image_sizes={
            "sampled": 6,
            "smallest": {"height": 8, "width": 9},
            "median": {"height": 10, "width": 10},
            "largest": {"height": 20, "width": 30},
        },
    )


def test_datasets_are_listed_over_all_pages(
    run: Run, service: Any, dataset_record: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = dataset_record(name="a"), dataset_record(name="b", root="shared")
    service.answers["GET /datasets"] = (200, {"datasets": [first], "next": "a"})
    service.answers["GET /datasets?cursor=a"] = (200, {"datasets": [second], "next": None})
    assert run("datasets") == 0
    printed = capsys.readouterr().out
    assert "test 2, train 4" in printed
    assert "root shared" in printed
    assert run("datasets", "--json") == 0
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


def test_a_dataset_is_shown_with_its_counts_and_sizes(
    run: Run, service: Any, detail: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET /datasets/pets"] = (200, detail)
    assert run("datasets", "pets") == 0
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()]
    assert ["│", "cat", "│", "3", "│", "2", "│"] in table
    assert ["│", "dog", "│", "1", "│", "0", "│"] in table
    assert (
        "smallest 8 x 9, median 10 x 10, largest 20 x 30 (height x width; sampled from 6 images)"
        in printed
    )


def test_an_archive_is_added_under_its_own_name(
    run: Run, service: Any, detail: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "Pets.npz").write_bytes(b"arrays")
    service.answers["POST /datasets"] = (201, detail)
    service.answers["GET /datasets/pets"] = (200, detail)
    assert run("datasets", f"--add={tmp_path / 'Pets.npz'}") == 0
    (request,) = service.asked("POST /datasets")
    assert request.parts == [("name", None, b"pets"), ("archive", "Pets.npz", b"arrays")]


def test_a_root_is_registered(run: Run, service: Any, detail: dict[str, Any]) -> None:
    service.answers["POST /datasets"] = (201, detail)
    service.answers["GET /datasets/pets"] = (200, detail)
    assert run("datasets", "pets", "--root=shared") == 0
    (request,) = service.asked("POST /datasets")
    assert json.loads(request.body) == {"name": "pets", "root": "shared"}


def test_a_sheet_is_written(
    run: Run, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET /datasets/pets/sheet"] = (200, b"\x89PNG", "image/png")
    assert run("datasets", "pets", f"--sheet={tmp_path / 'sheet.png'}") == 0
    assert (tmp_path / "sheet.png").read_bytes() == b"\x89PNG"
    assert run("datasets", "pets", f"--sheet={tmp_path / 'no/sheet.png'}") == 1
    assert "no/sheet.png: No such file" in capsys.readouterr().err


def test_a_dataset_is_removed_once_that_is_confirmed(
    run: Run, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["DELETE /datasets/pets"] = (204, None)
    assert run("datasets", "pets", "--delete") == 2
    assert not service.received
    capsys.readouterr()
    assert run("datasets", "pets", "--delete", "--yes") == 0
    assert len(service.received) == 1
    assert capsys.readouterr() == ("", "removed dataset pets\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--delete"],
        ["--root=shared"],
        ["--sheet=s.png"],
        ["pets", "--add=x", "--root=shared"],
        ["pets", "--delete", "--sheet=s.png"],
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    run: Run, service: Any, arguments: list[str]
) -> None:
    assert run("datasets", *arguments) == 2
    assert not service.received
