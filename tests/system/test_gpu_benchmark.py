"""``python -m benchmarks.gpu`` and ``make gpu-check``, as far as that goes without a GPU."""

import json
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu, gpu_check
from benchmarks.gpu_check import Step, check
from benchmarks.gpu_measuring import calibrating, laps, networks, report, session
from benchmarks.gpu_measuring.ceilings import sign_program
from benchmarks.gpu_measuring.cells import Deadline, Task, tasks
from benchmarks.gpu_measuring.laps import by_turns, medians
from benchmarks.gpu_measuring.layers import (
    NAMES,
    Timed,
    copies,
    launch,
    layer_figures,
    layers,
    library_launch,
    on_kind,
    values,
)
from benchmarks.gpu_measuring.nets import Net, Source, make_net, timed_images
from benchmarks.gpu_measuring.networks import logit_error, packed_bytes
from benchmarks.gpu_measuring.ratios import GOALS, Goal, ratios
from benchmarks.gpu_measuring.rival import Captured, in_half_precision, parameter_bytes
from benchmarks.gpu_measuring.roofline import Ceilings, Work, float_work, geometry, work
from benchmarks.gpu_measuring.session import Session
from models.kernels.cuda.compilation import compiled
from models.kernels.product_shape import ProductShape, ValueKind
from models.preprocessing import InputSpec
from models.runtime.reference import ReferenceRuntime

ROOT = Path(__file__).parents[2]
TINY = Source("digits_cnn", InputSpec(1, 8, 8, (0.5,), (0.25,)), 10)
LAYER = ProductShape(64, 128, kernel=(3, 3), stride=(2, 2), padding=(1, 1), in_hw=(8, 8))
WITHOUT_A_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture(scope="module")
def tiny() -> Net:
    return make_net("tiny", TINY)


class Clock:
    """Time that passes only where something takes it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds

        return work

    def laps(self, run: Callable[[], object], count: int) -> list[float]:
        found = []
        for _ in range(count):
            begun = self.now
            run()
            found.append(self.now - begun)
        return found


def test_each_runtime_has_its_turns_and_the_same_time() -> None:
    clock = Clock()
    runs = {"slow": clock.taking(0.1), "fast": clock.taking(0.01)}
    times = by_turns(runs, 2.0, rounds=4, laps=clock.laps)
    assert {name: len(each) for name, each in times.items()} == {"slow": 20, "fast": 200}
    assert medians(times) == pytest.approx({"slow": 0.1, "fast": 0.01})


def test_nobody_always_comes_after_the_same_one() -> None:
    clock, turns = Clock(), []

    def laps(run: Callable[[], object], count: int) -> list[float]:
        turns.append(run)
        return clock.laps(run, count)

    runs = {name: clock.taking(1.0) for name in "abc"}
    by_turns(runs, 0.0, rounds=6, laps=laps)
    # Behind the three that find out how many laps there are.
    rounds = [tuple(turns[start : start + 3]) for start in range(3, len(turns), 3)]
    assert len(rounds) == 6
    assert all(set(one) == set(runs.values()) for one in rounds)
    assert len(set(rounds)) == 6


def test_what_takes_no_time_at_all_still_ends() -> None:
    clock = Clock()
    times = by_turns({"nothing": clock.taking(0.0)}, 1.0, laps=clock.laps)
    assert set(times["nothing"]) == {0.0}


def test_a_product_moves_bits_of_weights_and_each_kind_of_values() -> None:
    read, kept, weights = 2 * 8 * 8 * 64, 2 * 4 * 4 * 128, 128 * 9 * 64
    operations = 2 * 2 * 4 * 4 * 128 * 9 * 64
    assert work(LAYER, 2, "f16", "f16") == Work(2 * (read + kept) + weights // 8, operations)
    assert work(LAYER, 2, "i8", "i8") == Work(read + kept + weights // 8, operations)
    assert work(LAYER, 2, "b1", "b1") == Work((read + kept + weights) // 8, operations)
    assert float_work(LAYER, 2) == Work(2 * (read + kept + weights), operations)


def test_channels_that_fill_no_word_take_a_whole_one() -> None:
    shape = ProductShape(3, 4, kernel=(3, 3), in_hw=(5, 5), bases=2)
    assert work(shape, 1, "b1", "f16").bytes == 4 * 25 + 2 * 9 * 4 + 4 * 2 * 4 * 9
    assert work(shape, 1, "b1", "f16").operations == 2 * 2 * 9 * 4 * 27


def test_the_slower_half_bounds_a_product() -> None:
    ceilings = Ceilings(10.0, {"f16": 100.0, "b1": 10_000.0})
    assert Work(100, 2000).least_seconds(ceilings, "f16") == 20
    assert Work(100, 2000).least_seconds(ceilings, "b1") == 10


def test_shapes_have_names_of_their_own() -> None:
    assert geometry(LAYER) == "c64x8x8_n128_k3x3_s2x2_p1x1"
    odd = ProductShape(4, 4, (3, 3), padding=(2, 2), dilation=(2, 2), groups=2, in_hw=(9, 9))
    assert geometry(odd) == "c4x9x9_n4_k3x3_s1x1_p2x2_d2x2_g2"


def test_layers_come_with_their_shares_of_the_ceiling() -> None:
    ceilings = Ceilings(1e9, {"f16": 1e12, "i8": 2e12, "b1": 1e13})
    timed = {
        name: Timed(seconds, Work(1_000_000, 1_000), kind)
        for name, seconds, kind in (
            ("fp16", 4e-3, "f16"),
            ("w1a16", 2e-3, "f16"),
            ("w1a8", 1e-3, "i8"),
            ("w1a1", 5e-4, "b1"),
        )
    }
    figures = layer_figures({LAYER: timed}, 64, ceilings)
    cell = "layers.c64x8x8_n128_k3x3_s2x2_p1x1.b64"
    assert figures[f"{cell}.w1a16_ms"] == pytest.approx(2.0)
    assert figures[f"{cell}.w1a16_of_ceiling"] == pytest.approx(0.5)
    assert figures[f"{cell}.w1a8_vs_fp16"] == pytest.approx(4)
    assert figures["layers.b64.w1a1_vs_w1a8"] == pytest.approx(2)
    table = report.layer_table(figures, 64)
    assert "c64x8x8_n128_k3x3_s2x2_p1x1" in table
    assert "c64x8x8" not in report.layer_table(figures, 1)


def test_layers_are_held_against_the_faster_rival() -> None:
    seconds = {"fp16": 3e-3, "fp16_compiled": 2e-3, "w1a16": 1e-3}
    timed = {name: Timed(each, Work(1, 1), "f16") for name, each in seconds.items()}
    figures = layer_figures({LAYER: timed}, 1, Ceilings(1e9, {"f16": 1e12}))
    assert figures["layers.c64x8x8_n128_k3x3_s2x2_p1x1.b1.w1a16_vs_fp16"] == pytest.approx(2)


def test_weights_that_are_read_once_are_more_than_a_cache_holds() -> None:
    linear = ProductShape(9216, 4096)
    assert copies(linear, 1) * 9216 * 4096 / 8 >= 1 << 27
    assert copies(linear, 64) == copies(LAYER, 1) == 1
    assert copies(ProductShape(32, 10), 8) == 32


def test_a_card_that_counts_no_bits_has_no_ceiling_for_them() -> None:
    timed = {"w1a1": Timed(1e-3, Work(1, 1), "b1"), "fp16": Timed(1e-3, Work(1, 1), "f16")}
    figures = layer_figures({LAYER: timed}, 64, Ceilings(1e9, {"f16": 1e12}))
    assert [name for name in figures if "of_ceiling" in name] == [
        "layers.c64x8x8_n128_k3x3_s2x2_p1x1.b64.fp16_of_ceiling"
    ]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_ceiling_for_signs_compiles(arch: str) -> None:
    pytest.importorskip("cuda.core")
    assert b"sign_ceiling" in compiled(sign_program(), arch)


def test_ratios_say_how_many_times_as_fast_and_what_share_of_the_bytes() -> None:
    figures = {
        "vgg9.b8.w1a16_ms": 2.0,
        "vgg9.b8.fp16_compiled_ms": 3.0,
        "vgg9.w1a16_weight_bytes": 1.0,
        "vgg9.w1a16_packed_bytes": 0.5,
        "vgg9.fp16_compiled_weight_bytes": 16.0,
    }
    found = ratios(figures, [("vgg9", 8), ("alexnet", 1)])
    assert found == {
        "vgg9.b8.w1a16_images_per_s": 4000,
        "vgg9.b8.w1a16_vs_fp16_compiled": 1.5,
        "vgg9.b8.fp16_compiled_images_per_s": pytest.approx(8000 / 3),
        "vgg9.w1a16_vs_fp16_bytes": 1 / 16,
        "vgg9.w1a16_vs_fp16_packed": 1 / 32,
    }


def test_goals_are_met_missed_or_not_measured() -> None:
    goals = [Goal("a", least=1.5), Goal("b", most=2.0), Goal("c", least=1.0)]
    rows = report.goal_table({"a": 1.5, "b": 2.1}, goals).splitlines()[-3:]
    assert [row.split()[-1] for row in rows] == ["met", "MISSED", "measured"]


def test_goals_speak_of_what_is_measured() -> None:
    cells = [(net, batch) for net in gpu.NETS for batch in gpu.BATCHES]
    figures = {f"{net}.b{n}.{one}_ms": 1.0 for net, n in cells for one in report.RUNTIMES}
    figures |= {f"{net}.{one}_weight_bytes": 1.0 for net in gpu.NETS for one in report.RUNTIMES}
    linear = ProductShape(9216, 4096)
    timed = {name: Timed(1.0, Work(1, 1), kind) for name, kind in (*NAMES.items(), ("fp16", "f16"))}
    ceilings = Ceilings(1.0, {"f16": 1.0})
    measured = ratios(figures, cells)
    for images in gpu.LAYER_BATCHES:
        measured |= layer_figures({linear: timed}, images, ceilings)
    assert {goal.figure for goal in GOALS} - set(measured) == {"resnet18.calibration_s"}


def test_what_goals_hang_on_comes_first_and_nothing_twice() -> None:
    found = tasks(gpu.NETS, gpu.BATCHES, gpu.LAYER_BATCHES, ("vgg9", "resnet18"), 1000)
    assert found[:2] == [Task("network", "resnet18", 1), Task("calibration", "resnet18", 1000)]
    assert Counter(task.kind for task in found) == {"network": 16, "layers": 8, "calibration": 2}
    assert len(set(found)) == len(found)
    assert tasks(("vgg9",), (8,), (), (), 1) == [Task("network", "vgg9", 8)]


def test_nothing_is_begun_that_would_end_too_late() -> None:
    clock = Clock()
    wanted = [Task("network", "vgg9", n) for n in (1, 2, 3)] + [Task("calibration", "vgg9", 9)]
    left_out: list[Task] = []
    begun = []
    for task in Deadline(200.0, clock).while_time(wanted, left_out):
        begun.append(task)
        clock.now += 105.0 if task.kind == "network" else 1.0
    assert begun == [wanted[0], wanted[3]]
    assert left_out == wanted[1:3]
    assert [str(task) for task in left_out] == ["vgg9, batches of 2", "vgg9, batches of 3"]


def test_how_long_something_takes_is_thought_of_before_it_is_seen() -> None:
    clock = Clock()
    wanted = [Task("network", "vgg9", n) for n in (1, 2)]
    assert list(Deadline(119.0, clock).while_time(wanted, [])) == []
    for _ in Deadline(121.0, clock).while_time(wanted, left_out := []):
        clock.now += 60.0
    assert left_out == []


def test_without_a_limit_everything_is_measured() -> None:
    wanted = [Task("network", "vgg9", n) for n in (1, 2, 3)]
    left_out: list[Task] = []
    assert list(Deadline(None).while_time(wanted, left_out)) == wanted
    assert left_out == []


def test_what_fails_keeps_nothing_else_from_being_measured() -> None:
    class Half(Session):
        def _network(self, task: Task) -> None:
            raise RuntimeError("out of luck")

        def _calibration(self, task: Task) -> None:
            self.figures["found"] = 1.0

    kept: list[dict[str, float]] = []
    session = Half({}, Deadline(None), 0.1, autotune=False)
    wanted = [Task("network", "vgg9", 1), Task("calibration", "vgg9", 2)]
    session.run(wanted, lambda: kept.append(dict(session.figures)))
    assert session.failures == ["vgg9, batches of 1: RuntimeError: out of luck"]
    assert kept == [{}, {"found": 1.0}]


def test_networks_are_binary_and_drawn_from_a_seed(tiny: Net) -> None:
    assert {node.weight for node in tiny.w1a8.plan.nodes if hasattr(node, "weight")} == {"bits"}
    again = make_net("tiny", TINY)
    x = timed_images(tiny, 3)
    exact, rounded = (ReferenceRuntime(one).run(x) for one in (tiny.w1a16, tiny.w1a8))
    assert torch.equal(ReferenceRuntime(again.w1a8).run(x), rounded)
    assert 0 < (exact - rounded).square().sum() < 0.05 * exact.square().sum()
    assert torch.isfinite(tiny.network(x)).all()


def test_an_answer_that_is_off_is_told_from_one_that_is_not(tiny: Net) -> None:
    x = timed_images(tiny, 3)
    exact = ReferenceRuntime(tiny.w1a8).run(x)
    assert logit_error(tiny.w1a8, x, exact) == 0
    assert logit_error(tiny.w1a8, x, exact * 1.1) == pytest.approx(0.01, rel=0.01)
    assert logit_error(tiny.w1a8, x, torch.zeros_like(exact)) == 1


def test_packed_weights_take_a_bit_each_and_fill_words(tiny: Net) -> None:
    shapes = layers([tiny.w1a16])
    # One channel of the first layer takes a whole word.
    words = sum(-(-s.group_channels // 32) * s.taps * s.filters for s in shapes)
    assert packed_bytes(tiny.w1a16) == 4 * words


def test_the_rival_is_the_same_network_without_batch_norm(tiny: Net) -> None:
    half = in_half_precision(tiny.network, "cpu")
    assert not any(isinstance(one, nn.BatchNorm2d | nn.BatchNorm1d) for one in half.modules())
    x = timed_images(tiny, 3)
    torch.testing.assert_close(half(x.half()).float(), tiny.network(x), rtol=0.02, atol=0.02)
    assert parameter_bytes(half) == 2 * sum(tensor.numel() for tensor in half.parameters())


def test_layers_are_the_products_of_the_plan_on_every_kind(tiny: Net) -> None:
    found = layers([tiny.w1a16])
    assert len(found) == 4
    pixels = {shape: shape.out_hw[0] * shape.out_hw[1] for shape in found}
    macs = sum(n * shape.filters * shape.filter_weights for shape, n in pixels.items())
    assert macs == tiny.w1a16.plan.macs
    for shape, step in found.items():
        for kind in NAMES.values():
            of_kind = on_kind(step, kind)
            assert of_kind.shape == shape
            assert of_kind.finish.epilogue.read == kind
            x = values(shape, 2, kind, torch.device("cpu"))
            assert x.shape[:3] == (2, *shape.in_hw)
    signs = values(ProductShape(35, 4), 2, "b1", torch.device("cpu"))
    assert signs.shape[-1] == 2
    assert not (signs[..., -1] & ~7).any()


@pytest.mark.parametrize("kind", ["f16", "i8"])
def test_a_layer_runs_on_what_it_is_timed_with(tiny: Net, kind: ValueKind) -> None:
    pytest.importorskip("triton")
    from models.runtime.gpu_kernels import GpuKernels

    *_, last = layers([tiny.w1a16]).values()
    kernels, cpu = GpuKernels(autotune=False), torch.device("cpu")
    launch(on_kind(last, kind), 2, kernels, cpu)()
    assert library_launch(last.shape, 2, cpu)().shape == (2, 10)


def test_a_convolution_of_the_library_is_of_the_same_shape() -> None:
    made = library_launch(LAYER, 2, torch.device("cpu"))()
    assert (made.shape[0], *made.shape[2:], made.shape[1]) == LAYER.out_shape(2, "f16")


def test_calibration_is_timed_by_the_clock_it_is_given() -> None:
    ticks = iter([10.0, 12.5])
    seconds = calibrating.calibration_seconds(TINY, 8, torch.device("cpu"), lambda: next(ticks))
    assert seconds == 2.5


def clocked_laps(run: Callable[[], object], count: int) -> list[float]:
    clock = Clock()
    return clock.laps(lambda: (run(), clock.taking(0.001)()), count)


@pytest.fixture
def rehearsed(tiny: Net, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session on a GPU that is simulated, of a tiny network whose laps take a millisecond."""
    pytest.importorskip("triton")
    from models.runtime import gpu_kernels

    beside = ROOT / "tests/models"
    plain = runpy.run_path(str(beside / "plain_gpu_kernels.py"))["PlainKernels"]
    runpy.run_path(str(beside / "simulated_gpu.py"))["install"](monkeypatch)
    monkeypatch.setattr(gpu_kernels, "GpuKernels", lambda **_: plain())
    monkeypatch.setattr(laps, "event_laps", clocked_laps)
    for name, stand_in in (
        ("synchronize", lambda: None),
        ("empty_cache", lambda: None),
        ("memory_reserved", lambda: 0),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(networks, "in_half_precision", lambda net, _: in_half_precision(net, "cpu"))
    monkeypatch.setattr(
        networks, "compiled", lambda half, x: Captured(lambda: half(x.half()), half, x, x)
    )
    monkeypatch.setattr(session, "in_a_graph", lambda launches: launches[0])
    monkeypatch.setattr(session, "make_net", lambda name, source: tiny)
    found = Session({"tiny": TINY}, Deadline(None), 0.0, False, device=torch.device("cpu"))
    found.__dict__["ceilings"] = Ceilings(1e12, {"f16": 1e15, "i8": 1e15, "b1": 1e16})
    return found


def test_a_session_measures_networks_layers_and_calibration(rehearsed: Session) -> None:
    wanted = tasks(("tiny",), (2,), (2,), ("tiny",), 8)
    rehearsed.run(wanted, lambda: None)
    assert rehearsed.failures == rehearsed.left_out == []
    assert rehearsed.cells == [("tiny", 2)]
    figures = rehearsed.figures
    for name in report.RUNTIMES:
        assert figures[f"tiny.b2.{name}_ms"] == pytest.approx(1.0)
        assert figures[f"tiny.b2.{name}_peak_mib"] == 0
        assert figures[f"tiny.{name}_weight_bytes"] > 0
    assert figures["tiny.w1a8_logit_error"] == 0 <= figures["tiny.w1a16_logit_error"] < 1e-5
    assert figures["tiny.w1a8_packed_bytes"] <= figures["tiny.w1a8_weight_bytes"]
    assert figures["tiny.calibration_s"] > 0
    layer = "layers.c512x1x1_n10_k1x1_s1x1_p0x0.b2"
    assert {f"{layer}.{name}_ms" for name in ("fp16", *NAMES)} <= set(figures)
    gpu.print_tables(rehearsed, ("tiny",), (2,))


@WITHOUT_A_GPU
@pytest.mark.parametrize("module", ["benchmarks.gpu", "benchmarks.gpu_check"])
def test_a_machine_without_a_gpu_is_told_so(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, "--json", str(tmp_path / "figures.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "There is no NVIDIA GPU here" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [["--nets", "vgg10"], ["--batches", "0"], ["--batches", "x"]])
def test_what_there_is_not_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        gpu.arguments(given)
    assert refused.value.code == 2
    assert given[1] in capsys.readouterr().err


def test_the_command_line_says_what_is_measured() -> None:
    asked = gpu.arguments(["--nets", "vgg9,alexnet", "--layer-batches", "", "--no-autotune"])
    assert (asked.nets, asked.batches) == (("vgg9", "alexnet"), (1, 8, 64, 256))
    assert (asked.layer_batches, asked.autotune, asked.limit) == ((), False, None)


def test_a_step_that_fails_hides_none_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    made = [lambda name=name: Step(name, [name], 1.0) for name in ("one", "two", "three")]
    outcomes = {"one": "passed", "two": "FAILED with status 3", "three": "left out: not here"}
    for wanted, status in ((made, 1), ([made[0], made[2]], 0)):
        assert check(wanted, lambda: 5.0, lambda step, _: outcomes[step.name]) == status
    shown = capsys.readouterr().out
    assert "two: FAILED with status 3\nthree: left out: not here" in shown


@pytest.mark.parametrize(
    ("code", "limit_s", "outcome"),
    [
        ("pass", 60.0, "passed"),
        ("raise SystemExit(7)", 60.0, "FAILED with status 7"),
        ("import signal; signal.pause()", 0.2, "FAILED: not done within 0 s"),
        ("pass", 0.0, "FAILED: no time was left"),
    ],
)
def test_steps_end_in_time(code: str, limit_s: float, outcome: str) -> None:
    assert gpu_check.run(Step("step", [sys.executable, "-c", code], 60.0), limit_s) == outcome


def test_what_is_over_its_time_may_say_what_it_has_found(capfd: pytest.CaptureFixture[str]) -> None:
    code = "trap 'echo half of it; exit 1' INT; while :; do sleep 0.1; done"
    step = Step("step", ["sh", "-c", code], 60.0)
    assert gpu_check.run(step, 4.0).startswith("FAILED: not done")
    assert "half of it" in capfd.readouterr().out


def test_a_checker_that_is_not_there_is_left_out() -> None:
    assert gpu_check.run(Step("memcheck", None, 1.0), 1.0).startswith("left out")


def test_the_benchmark_gets_the_time_that_is_left() -> None:
    steps = [make() for make in gpu_check.steps(lambda: 125.0, Path("figures.json"))]
    names = ["tests", "small networks", "memcheck", "racecheck", "benchmark"]
    assert [step.name for step in steps] == names
    last = steps[-1]
    assert last.limit_s == 125.0
    asked = gpu.arguments(list(last.command or [])[3:])
    assert (asked.limit, asked.json) == (100.0, Path("figures.json"))
    assert not asked.autotune


@pytest.mark.parametrize(("status", "works"), [(0, True), (1, False)])
def test_a_checker_that_refuses_the_gpu_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, works: bool
) -> None:
    checker = tmp_path / "compute-sanitizer"
    checker.write_text(f"#!/bin/sh\nexit {status}\n")
    checker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    _, _, memcheck, _, _ = [make() for make in gpu_check.steps(lambda: 125.0, None)]
    assert (memcheck.command is not None) is works
    assert memcheck.environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_all_tests_that_need_a_gpu_are_run(tmp_path: Path) -> None:
    command = gpu_check.tests_command(ROOT / "tests")
    assert command[1:5] == ["-m", "pytest", "-m", "gpu"]
    assert "tests/worker/test_training.py" in command
    # This file speaks of the mark, and has none.
    assert f"tests/system/{Path(__file__).name}" not in command


def test_tables_are_printed_of_what_was_measured_before_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "require_card", lambda: None)
    monkeypatch.setattr(gpu, "card", lambda: {"gpu": "a card"})

    def network(session: Session, task: Task) -> None:
        if task.images == 64:
            raise KeyboardInterrupt
        session.figures[f"{task.net}.b{task.images}.w1a16_ms"] = 123.0
        session.cells.append((task.net, task.images))

    monkeypatch.setattr(Session, "_network", network)
    given = ["--nets=resnet18", "--batches=1,64", "--layer-batches=", "--calibrate="]
    assert gpu.main(given) == 1
    shown = capsys.readouterr().out
    assert "123" in shown
    assert "FAILED: interrupted" in shown


def test_figures_become_a_record_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "require_card", lambda: None)
    monkeypatch.setattr(gpu, "card", lambda: {"gpu": "a card"})

    def network(session: Session, task: Task) -> None:
        for name, ms in (("w1a16", 1.0), ("w1a8", 0.5), ("fp16_compiled", 2.0)):
            session.figures[f"{task.net}.b{task.images}.{name}_ms"] = ms
        session.cells.append((task.net, task.images))

    monkeypatch.setattr(Session, "_network", network)
    file = tmp_path / "figures.json"
    given = ["--nets=vgg9", "--batches=8", "--layer-batches=", "--calibrate=", f"--json={file}"]
    assert gpu.main(given) == 0
    record = json.loads(file.read_text())
    assert record["card"] == {"gpu": "a card"}
    assert record["not_measured"] == record["failures"] == []
    assert record["figures"]["vgg9.b8.w1a8_ms"] == 0.5
    assert record["figures"]["vgg9.b8.w1a8_vs_fp16_compiled"] == 4
    shown = capsys.readouterr().out
    assert "a card" in shown
    assert "vgg9.b64.w1a16_vs_fp16_compiled" in shown  # a goal, which was not measured
    assert "not measured" in shown
