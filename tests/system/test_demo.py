"""The demonstration: its data, its training, its judgement, and a service that always stops."""

import dataclasses
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import digits
from benchmarks.demo import DemoFailed, Figures
from benchmarks.digits.training import INPUT, predict, train
from benchmarks.service import Service, ServiceFailed
from models.preprocessing import decode_image

ROOT = Path(__file__).resolve().parents[2]
GOOD = Figures(
    images=450,
    full_precision=440 / 450,
    served=438 / 450,
    float_bytes=900_000,
    artifact_bytes=36_000,
    float_ms=0.5,
    served_ms=2.0,
)
# Writes the ready file (its last argument) and waits for a signal.
WAITING = """
import pathlib, signal, sys, os
print("settings", [name for name in os.environ if name.startswith("BITPRESS_")], flush=True)
pathlib.Path(sys.argv[-1]).write_text("http://127.0.0.1:1\\n")
signal.pause()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITING


def fake(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_the_digits_are_all_there() -> None:
    everything = digits.load()
    assert everything.pixels.shape == (1797, 8, 8, 1)
    assert everything.pixels.dtype == np.uint8
    assert np.bincount(everything.labels).tolist() == [
        *(178, 182, 177, 183, 181),
        *(182, 181, 179, 174, 180),
    ]
    levels = {int(np.floor(value * 255 / 16 + 0.5)) for value in range(17)}
    assert set(np.unique(everything.pixels).tolist()) == levels


def test_a_split_keeps_the_share_of_every_class_and_loses_no_digit() -> None:
    everything = digits.load()
    training, test = digits.split(everything, seed=3)
    assert len(training) + len(test) == len(everything)
    both = np.concatenate([training.pixels, test.pixels]).reshape(len(everything), -1)
    assert np.array_equal(
        np.sort(both.view("V64").ravel()),
        np.sort(everything.pixels.reshape(len(everything), -1).view("V64").ravel()),
    )
    for label, count in enumerate(np.bincount(test.labels)):
        assert abs(count - 0.25 * np.sum(everything.labels == label)) <= 0.5


def test_written_digits_are_decoded_to_the_same_pixels(tmp_path: Path) -> None:
    some = digits.load()[np.arange(0, 1797, 90)]
    paths = digits.write_images(some, tmp_path)
    for path, pixels, label in zip(paths, some.pixels, some.labels, strict=True):
        assert path.parent.name == str(label)
        assert np.array_equal(decode_image(path.read_bytes(), INPUT), pixels)


def test_equal_seeds_train_equal_networks() -> None:
    some = digits.load()[np.arange(128)]
    networks = [train(some, seed=seed, epochs=1) for seed in (1, 1, 2)]
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["features.0.weight"], states[2]["features.0.weight"])
    assert predict(networks[0], some).shape == (128,)


def test_good_figures_end_in_the_agreed_line() -> None:
    assert GOOD.verdict() == "demo: ok full_precision=0.978 served=0.973 ratio=25.0"
    assert "25.0" in GOOD.table()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"full_precision": 0.95, "served": 0.95}, r"reaches 0\.950, not 0\.95"),
        ({"served": 430 / 450}, "more than 0.02 below"),
        ({"artifact_bytes": 60_001}, "15.0 times smaller, not 15"),
    ],
)
def test_a_figure_worse_than_promised_fails(change: dict[str, float], reason: str) -> None:
    with pytest.raises(DemoFailed, match=reason):
        dataclasses.replace(GOOD, **change).verdict()  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"served": 431 / 450}, {"artifact_bytes": 60_000}])
def test_a_figure_just_as_good_as_promised_passes(change: dict[str, float]) -> None:
    line = dataclasses.replace(GOOD, **change).verdict()  # type: ignore[arg-type]
    assert line.startswith("demo: ok")


def test_a_service_is_started_with_its_own_settings_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITPRESS_DATABASE_URL", "postgresql://elsewhere/db")
    service = Service(tmp_path / "service", command=fake(WAITING))
    with service:
        assert service.wait_until_ready() == "http://127.0.0.1:1"
    assert service._process.returncode == -signal.SIGTERM
    assert "settings []" in (tmp_path / "service/log").read_text()


def test_a_service_is_stopped_when_the_measurement_fails(tmp_path: Path) -> None:
    service = Service(tmp_path / "service", command=fake(WAITING))
    with pytest.raises(KeyboardInterrupt), service:
        raise KeyboardInterrupt
    assert service._process.returncode is not None


def test_a_service_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    service = Service(tmp_path / "service", command=fake(STUBBORN), stop_s=0.01)
    with pytest.raises(ServiceFailed, match="did not stop"), service:
        service.wait_until_ready()
    assert service._process.returncode == -signal.SIGKILL


def test_a_service_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    program = "import sys; print('the port is taken'); sys.exit(3)"
    service = Service(tmp_path / "service", command=fake(program))
    with pytest.raises(ServiceFailed, match=r"code 3\nthe port is taken"), service:
        service.wait_until_ready()


def test_a_service_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    starter = (
        "import pathlib, sys; from benchmarks.service import Service\n"
        "command = [sys.executable, '-c', sys.argv[2]]\n"
        "with Service(pathlib.Path(sys.argv[1]), command=command) as service:\n"
        "    service.wait_until_ready()\n"
        "    print(service._process.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", starter, str(tmp_path / "service"), WAITING]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        service = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    try:
        assert select.select([service], [], [], 30)[0]
    finally:
        os.close(service)


@pytest.mark.slow
def test_the_demonstration_succeeds_and_leaves_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    last = run.stdout.splitlines()[-1]
    found = re.fullmatch(
        r"demo: ok full_precision=(0\.\d{3}) served=(0\.\d{3}) ratio=(\d+\.\d)", last
    )
    assert found is not None
    full_precision, served, ratio = map(float, found.groups())
    assert full_precision > 0.95
    assert served >= full_precision - 0.0205
    assert ratio >= 15
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("bitpress")]
