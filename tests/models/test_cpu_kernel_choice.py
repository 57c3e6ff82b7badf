"""The choice among kernels: measured where several are exact, once per machine and shape."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.runtime import kernel_choice
from models.runtime.flat_program import FlatProgram, Kind, Step, Type, Value
from models.runtime.kernel_choice import cache_folder, measured_kernels, with_kernels

SOURCE = Value(64, 8, 8, Type.U8)
MEASURED = [0, 1] * 3  # which kernels are timed to choose among two


class FakeLibrary:
    """Two kernels; ``seconds`` says how long each takes."""

    def __init__(self, path: Path, seconds: list[float]) -> None:
        self.path = path
        self.seconds = seconds
        self.timed: list[int] = []

    def kernel_names(self, kernel_set, step, source):
        return ["lookup_i16", "expand_i8"][: len(self.seconds)]

    def time_product(self, kernel_set, threads, step, source, kernel, *, images, repeats):
        self.timed.append(kernel)
        return self.seconds[kernel]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def library_file(tmp_path):
    path = tmp_path / "library.so"
    path.write_bytes(b"one build")
    return path


def product(**members):
    return Step(Kind.PRODUCT, in0=0, **{"filters": 64, "kernel_rows": 3, **members})


def choose(library, step=None, source=SOURCE, threads=1):
    with measured_kernels(library, "avx512", threads) as chosen:
        return chosen(step or product(), source)


@pytest.mark.parametrize(("seconds", "fastest"), [([1, 2], 0), ([2, 1], 1), ([-1, 1], 1)])
def test_the_fastest_kernel_is_taken_and_remembered(library_file, seconds, fastest):
    library = FakeLibrary(library_file, seconds)
    assert choose(library) == fastest
    assert library.timed == MEASURED
    assert choose(library) == fastest
    assert library.timed == MEASURED


def test_a_shape_is_measured_once_within_a_program(library_file):
    library = FakeLibrary(library_file, [2, 1])
    program = FlatProgram(
        (SOURCE, SOURCE), (Step(Kind.INPUT, out_u8=0), product(), product(), product(groups=2))
    )
    with measured_kernels(library, "avx512", 1) as measured:
        chosen = with_kernels(program, measured)
    assert [step.kernel for step in chosen.steps] == [-1, 1, 1, 1]
    assert library.timed == MEASURED * 2


def test_what_decides_about_speed_is_told_apart(library_file):
    library = FakeLibrary(library_file, [2, 1])
    choose(library)
    for step, source, threads in [
        (product(filters=65), SOURCE, 1),
        (product(stride_columns=2), SOURCE, 1),
        (product(in_zero=3), SOURCE, 1),
        (product(in1=1), SOURCE, 1),
        (product(out_f32=1), SOURCE, 1),
        (product(out_u8=1), SOURCE, 1),
        (product(), Value(64, 8, 9, Type.U8), 1),
        (product(), SOURCE, 2),
    ]:
        library.timed.clear()
        choose(library, step, source, threads)
        assert library.timed == MEASURED
    library_file.write_bytes(b"another build")
    kernel_choice._digest.cache_clear()
    library.timed.clear()
    choose(library)
    assert library.timed == MEASURED


def test_where_no_kernel_can_be_measured_nothing_is_remembered(library_file, folder):
    library = FakeLibrary(library_file, [-1, -1])
    assert choose(library) == 0
    assert not folder.exists()
    library.seconds = [2, 1]
    assert choose(library) == 1


def test_where_nothing_is_to_be_chosen_nothing_is_measured(library_file, folder):
    library = FakeLibrary(library_file, [1])
    assert choose(library) == 0
    # Sums of real numbers depend on their order: the first kernel, whatever the clock says.
    library = FakeLibrary(library_file, [2, 1])
    assert choose(library, source=Value(64, 8, 8, Type.F32)) == 0
    assert not library.timed and not folder.exists()


def test_processors_of_one_name_are_told_apart(tmp_path):
    """``AMD EPYC``, without a number, is what several generations call themselves."""
    names = set()
    for family in (25, 26):
        path = tmp_path / str(family)
        path.write_text(
            f"processor : 0\nmodel name\t: AMD EPYC\ncpu family\t: {family}\nmodel\t\t: 2\n\n"
            f"processor : 1\nmodel name\t: another\n"
        )
        names.add(kernel_choice.processor_name(path))
    assert names == {"AMD EPYC 25 2", "AMD EPYC 26 2"}
    assert kernel_choice.processor_name(tmp_path / "none")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"a": 3}', b"[" * 100_000, b"null"]
)
def test_a_damaged_cache_is_measured_anew_and_replaced(library_file, folder, damage):
    folder.mkdir()
    file = folder / "cpu-kernels.json"
    file.write_bytes(damage)
    library = FakeLibrary(library_file, [2, 1])
    assert choose(library) == 1
    assert list(json.loads(file.read_text()).values()) == ["expand_i8"]


def test_a_kernel_that_is_gone_is_not_believed(library_file, folder):
    library = FakeLibrary(library_file, [2, 1])
    choose(library)
    file = folder / "cpu-kernels.json"
    file.write_text(file.read_text().replace("expand_i8", "expand_i7"))
    assert choose(library) == 1
    assert library.timed == MEASURED * 2


def test_a_folder_that_cannot_be_written_is_no_error(library_file, folder, monkeypatch):
    folder.write_text("a file where the folder should be")
    assert choose(FakeLibrary(library_file, [2, 1])) == 1

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BITPRESS_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert choose(FakeLibrary(library_file, [2, 1])) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("BITPRESS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bitpress"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bitpress"


def write_some(first):
    for i in range(20):
        kernel_choice._write_cache({f"{first}/{j}": "expand_i8" * 50 for j in range(i)})


def test_those_that_write_at_once_leave_a_whole_file(folder):
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write_some, i) for i in range(4)]
        while not all(writer.done() for writer in writers):
            if (folder / "cpu-kernels.json").exists():
                json.loads((folder / "cpu-kernels.json").read_text())
    assert all(writer.exception() is None for writer in writers)
    assert [path.name for path in folder.iterdir()] == ["cpu-kernels.json"]
    assert len(kernel_choice._read_cache()) == 19


def test_the_cache_stays_small(folder, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_MOST_ENTRIES", 3)
    kernel_choice._write_cache({str(i): "lookup_i16" for i in range(5)})
    assert list(kernel_choice._read_cache()) == ["2", "3", "4"]
