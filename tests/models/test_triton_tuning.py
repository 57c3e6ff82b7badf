"""Choices of configurations: measured once, remembered, and never trusted blindly."""

import json
import math

import pytest
import torch

from models.kernels.product_shape import Epilogue, ProductShape, ProductTensors

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from models.kernels.triton import tuning
from models.kernels.triton.configurations import Configuration, candidates, heuristic

POSSIBLE = [Configuration(64, block) for block in (16, 32, 64)]
SHAPE = ProductShape(64, 64, (3, 3), padding=(1, 1), in_hw=(14, 14))
PLAIN = Epilogue("f16", "f16")
WORK = tuning.work_name(SHAPE, PLAIN, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never(configs):
    raise AssertionError("measured again")


def choose(seconds=None, machine="nvidia-h200", work=WORK):
    return tuning.remembered_choice(machine, work, POSSIBLE, seconds)


def test_measured_once(folder):
    asked = []

    def seconds(configs):
        asked.append(list(configs))
        return [3e-6, 1e-6, math.inf]

    assert choose(seconds) == POSSIBLE[1]
    assert choose(never) == POSSIBLE[1]
    assert choose() == POSSIBLE[1]
    assert asked == [POSSIBLE]
    assert len(list(folder.iterdir())) == 1
    # Another device, and another product, have to be measured themselves.
    assert choose(machine="nvidia-a100") == POSSIBLE[0]
    assert choose(lambda _: [2.0, 3.0, 1.0], work="another") == POSSIBLE[2]
    assert choose(never) == POSSIBLE[1]


def test_without_a_measurement_the_rule_decides(folder):
    assert choose() == POSSIBLE[0]
    assert choose(lambda _: [math.inf] * 3) == POSSIBLE[0]
    assert not folder.exists()
    only = POSSIBLE[2:]
    assert tuning.remembered_choice("nvidia-h200", WORK, only, never) == only[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        "[" * 100_000,
        json.dumps({WORK: None}),
        json.dumps({WORK: "wide"}),
        json.dumps({WORK: [1] * 40}),
        json.dumps({WORK: [64, [16]]}),
        json.dumps({WORK: [4096, 4096, 32]}),
    ],
    ids=lambda text: text[:12],
)
def test_damage_is_measured_over(folder, text):
    choose(lambda _: [2.0, 1.0, 3.0])
    (path,) = folder.iterdir()
    path.write_text(text)
    assert choose() == POSSIBLE[0]
    assert choose(lambda _: [3.0, 2.0, 1.0]) == POSSIBLE[2]
    assert choose(never) == POSSIBLE[2]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path / "file"))
    assert choose(lambda _: [2.0, 1.0, 3.0]) == POSSIBLE[1]


def test_choices_that_the_package_brings_along(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    choose(lambda _: [2.0, 1.0, 3.0])
    (own,) = (tmp_path / "cache").iterdir()
    (tmp_path / "nvidia-b200.json").write_text(own.read_text())
    assert choose(never, machine="nvidia-b200") == POSSIBLE[1]


def test_names_of_devices():
    assert tuning.device_file_name("NVIDIA H200") == "nvidia-h200"
    assert tuning.device_file_name("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"


def test_on_a_cpu_the_rule_decides():
    x, out = torch.zeros(2, 14, 14, 64, dtype=torch.float16), torch.zeros(2, 14, 14, 64)
    words = torch.zeros(SHAPE.words_shape, dtype=torch.int32)
    chosen = tuning.choose(x, words, ProductTensors(), SHAPE, PLAIN, out, measure=True)
    assert chosen == heuristic(SHAPE, PLAIN, 2) == candidates(SHAPE, PLAIN, 2)[0]


@pytest.mark.parametrize(
    "error", [OutOfResources(300_000, 232_448, "shared memory"), RuntimeError("a pass failed")]
)
def test_what_cannot_run_takes_for_ever(error):
    def fail():
        raise error

    assert tuning.device_seconds([fail, fail]) == [math.inf, math.inf]
