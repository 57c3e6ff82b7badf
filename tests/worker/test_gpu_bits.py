"""The bit step as a GPU's kernel: it decides as the CPU does, bit by bit."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from models.kernels.triton import bit_updates  # noqa: E402
from models.kernels.triton.bit_updates import turn_bits  # noqa: E402
from worker import descent  # noqa: E402
from worker.accumulation import accumulate  # noqa: E402
from worker.descent import LEAST_GAIN, Solution, decide, descend  # noqa: E402
from worker.exact_products import exact_products  # noqa: E402
from worker.starts import sign_start  # noqa: E402
from worker.statistics import GramStatistics, LayerStatistics, SampleStatistics  # noqa: E402

gpu = pytest.mark.gpu
interpreted = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) >= "2.5.0",
    reason="Triton's interpreter does not run with this version of NumPy",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


class Block:
    """One block of rows: what the bit step takes, the codes and G's block in odd memory orders."""

    def __init__(self, seed: int, rows: int, filters: int, dtype: torch.dtype, fixed: bool) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype)

        samples = normal(40, rows + 3)
        self.gram = (samples.T @ samples / 40)[3:, 3:].T
        self.codes = torch.where(normal(filters, rows) < 0, -1.0, 1.0).to(dtype).T
        self.projection = normal(rows, filters + 2)[:, 1:-1]
        self.rows = normal(rows, filters)
        self.scales = normal(filters).abs() if fixed else None
        self.correlation = (self.codes * self.projection).sum(dim=0, dtype=torch.float64)
        self.response = (self.codes * self.rows).sum(dim=0, dtype=torch.float64).abs()

    def arguments(self, device: str = "cpu") -> list[Tensor | None]:
        own = (self.codes, self.rows, self.projection, self.gram, self.scales)
        found = [*own, self.correlation, self.response]
        return [None if one is None else one.clone().to(device) for one in found]

    def decided(self) -> list[Tensor | None]:
        """Return the arguments as the CPU leaves them."""
        arguments = self.arguments()
        decide(*(None if one is None else one.numpy() for one in arguments))  # type: ignore[arg-type]
        return arguments

    def assert_turned(self, device: str) -> None:
        found, expected = self.arguments(device), self.decided()
        change = turn_bits(*found, least_gain=LEAST_GAIN)
        assert torch.equal(change.cpu(), expected[0] - self.codes)
        assert change.any() or len(change) == 1
        assert not change.all()
        for place in (0, 2, 3, 5, 6):
            assert torch.equal(found[place].cpu(), expected[place]), place
        assert torch.equal(found[1].cpu(), self.rows)


BLOCKS = [(1, 1, 40), (2, 9, 33), (3, 16, 5), (4, 19, 64)]
KINDS = [(torch.float32, False), (torch.float32, True), (torch.float64, False)]


@interpreted
@pytest.mark.parametrize(("dtype", "fixed"), KINDS)
@pytest.mark.parametrize(("seed", "rows", "filters"), BLOCKS)
def test_a_block_is_decided_as_on_the_cpu(
    seed: int, rows: int, filters: int, dtype: torch.dtype, fixed: bool
) -> None:
    Block(seed, rows, filters, dtype, fixed).assert_turned("cpu")


@gpu
@needs_gpu
@pytest.mark.parametrize(("dtype", "fixed"), [*KINDS, (torch.float64, True)])
@pytest.mark.parametrize(("seed", "rows", "filters"), [*BLOCKS, (5, 64, 1), (6, 64, 1000)])
def test_a_gpu_decides_a_block_as_the_cpu(
    seed: int, rows: int, filters: int, dtype: torch.dtype, fixed: bool
) -> None:
    Block(seed, rows, filters, dtype, fixed).assert_turned("cuda")


@interpreted
@pytest.mark.parametrize("eliminate", [False, True])
def test_a_bit_whose_two_values_are_equally_good_stays(eliminate: bool) -> None:
    codes = torch.tensor([[1.0, -1.0, 1.0]])
    scales = None if eliminate else torch.ones(3)
    zero = torch.zeros(3, dtype=torch.float64)
    change = turn_bits(
        codes,
        torch.zeros(1, 3),
        torch.zeros(1, 3),
        torch.zeros(1, 1),
        scales,
        zero.clone(),
        zero + 1,
        least_gain=LEAST_GAIN,
    )
    assert not change.any()
    assert codes.tolist() == [[1.0, -1.0, 1.0]]


@interpreted
@pytest.mark.parametrize("fixed", [False, True])
def test_the_operator_is_what_torch_expects(fixed: bool) -> None:
    arguments = Block(7, 3, 5, torch.float32, fixed).arguments()
    torch.library.opcheck(turn_bits, (*arguments, LEAST_GAIN))


def problem(
    seed: int, inputs: int, samples: int, filters: int, dtype: torch.dtype
) -> tuple[LayerStatistics, Tensor]:
    """Return statistics in ``dtype``, which keep G or fewer samples than inputs, and weights."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    seen = (torch.randn(samples, inputs, generator=generator) @ mixing + 0.5).relu()
    weight = torch.randn(inputs, filters, generator=generator)
    targets = seen @ weight + torch.randn(samples, filters, generator=generator)
    found = accumulate([(seen, targets)], inputs, filters, samples)
    return converted(found, dtype=dtype), weight.to(dtype)


def converted(statistics: LayerStatistics, **to: object) -> LayerStatistics:
    assert isinstance(statistics, GramStatistics | SampleStatistics)
    members = {
        name: one.to(**to) if isinstance(one, Tensor) else one  # type: ignore[call-overload]
        for name, one in vars(statistics).items()
    }
    return type(statistics)(**members)


def solved(
    statistics: LayerStatistics, weight: Tensor, sweeps: int, eliminate: bool
) -> tuple[Solution, list[float]]:
    codes, scales = sign_start(statistics, weight, torch.Generator())
    codes = codes.to(weight.dtype)
    solution = Solution.start(statistics, codes, scales)
    return solution, list(descend(statistics, solution, sweeps, eliminate=eliminate))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "BLOCK_ROWS", 8)


@interpreted
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("eliminate", [False, True])
@pytest.mark.parametrize("samples", [60, 12])
def test_sweeps_by_the_kernel_are_those_of_the_cpu(
    samples: int, eliminate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics, weight = problem(samples, 21, samples, 34, torch.float64)
    expected, path = solved(statistics, weight, 2, eliminate)
    step = descent.block_step(torch.device("cuda"))
    monkeypatch.setattr(descent, "block_step", lambda _device: step)
    found, found_path = solved(statistics, weight, 2, eliminate)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales)
    assert found_path == path
    assert path[-1] < path[0]


@gpu
@needs_gpu
@pytest.mark.parametrize("eliminate", [False, True])
@pytest.mark.parametrize(("inputs", "samples"), [(200, 900), (300, 90)])
def test_a_gpu_comes_to_the_same_bits_in_float64_and_the_same_loss_in_float32(
    inputs: int, samples: int, eliminate: bool
) -> None:
    for dtype in (torch.float64, torch.float32):
        statistics, weight = problem(inputs, inputs, samples, 130, dtype)
        there = converted(statistics, device="cuda")
        expected, path = solved(statistics, weight, 20, eliminate)
        with exact_products():
            found, found_path = solved(there, weight.cuda(), 20, eliminate)
        if dtype == torch.float64:
            assert torch.equal(found.codes.cpu(), expected.codes)
            assert len(found_path) == len(path)
        assert found_path[-1] == pytest.approx(path[-1], rel=1e-4)


@pytest.fixture
def strict() -> Iterator[None]:
    """Let whatever makes this process wait for a GPU fail."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@gpu
@needs_gpu
@pytest.mark.parametrize("eliminate", [False, True])
@pytest.mark.parametrize("samples", [300, 90])
def test_nothing_waits_for_the_gpu_within_a_sweep(
    samples: int, eliminate: bool, request: pytest.FixtureRequest
) -> None:
    statistics, weight = problem(3, 200, samples, 130, torch.float32)
    there = converted(statistics, device="cuda")
    solution, _ = solved(there, weight.cuda(), 1, eliminate)  # compiles the kernel
    active = torch.arange(130, device="cuda")
    codes = solution.codes[:, active]
    request.getfixturevalue("strict")
    descent._sweep(there, solution, codes, active, eliminate)


@pytest.mark.parametrize("real", ["fp32", "fp64"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_is_compiled_without_fused_roundings_and_without_spills(
    capability: int, fixed: bool, real: str, tmp_path: Path
) -> None:
    names = bit_updates._turn_bits.arg_names
    constants = {"GROWTH": 1.0 + LEAST_GAIN, "ELIMINATE": not fixed, "ROWS": 64, "FILTERS": 32}
    # As where matrices lie row by row.
    constants |= {name: 1 for name in names if name.endswith("_column")}
    pointers = {"codes", "rows", "projection", "gram", "scales", "change"}
    signature = {name: "constexpr" if name in constants else "i32" for name in names}
    signature |= dict.fromkeys(pointers, f"*{real}")
    signature |= {"correlation": "*fp64", "response": "*fp64"}
    aligned = [place for place, name in enumerate(names) if signature[name].startswith("*")]
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(bit_updates._turn_bits, signature, constants, attributes)
    options = {"num_warps": 1, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    assert "fma.rn" not in ptx
    assert "shfl" not in ptx  # each thread has its own filter
    # 1 + LEAST_GAIN in float64: in float32 it would be another number.
    assert ("0d3FF000001AD7F29B" in ptx) != fixed
    file = tmp_path / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    machine_code = _dumped(file, "--dump-sass")
    assert "FMUL" in machine_code or "DMUL" in machine_code
    assert "FFMA" not in machine_code and "DFMA" not in machine_code
    # What a thread would keep in memory if its registers did not suffice.
    assert "STACK:0 " in _dumped(file, "--dump-resource-usage")


def _dumped(cubin: Path, what: str) -> str:
    reader = [triton.knobs.nvidia.cuobjdump.path, what, str(cubin)]
    return subprocess.run(reader, capture_output=True, text=True, check=True).stdout
