"""Foreign checkpoints: every sound form is read, every other refused, and nothing in one runs."""

import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import checkpoints, unpickle
from models.checkpoint_container import Format
from store.errors import InvalidCheckpoint, TooLarge

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("BITPRESS_SHARED", ROOT / "../shared"))
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared checkpoints (BITPRESS_SHARED) are not here"
)
WEIGHTS = {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.arange(4.0)}


class Payload:
    """Unpickled by an unguarded reader, this makes a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def save(content: object, path: Path, kind: Format = "torch-zip") -> Path:
    if kind == "safetensors":
        assert isinstance(content, dict)
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch-zip")
    return path


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zip_bytes(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_zip_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    return buffer.getvalue()


def safetensors_bytes(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Record the child processes that are started; none may be alive afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield started
    assert all(child.returncode is not None for child in started)


@pytest.mark.parametrize("kind", ["safetensors", "torch-zip", "torch-legacy"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model"])
def test_the_format_is_told_by_content_not_by_name(
    tmp_path: Path, kind: Format, name: str, children: list[object]
) -> None:
    inspection = checkpoints.inspect(save(WEIGHTS, tmp_path / name, kind))
    assert inspection.format == kind
    expected = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)} if kind == "safetensors" else None
    assert inspection.shapes == expected
    assert not children


BAD_FILES = {
    "empty": (b"", "empty"),
    "text": (b"these are not the weights you look for\n", "neither"),
    "short": (b"\x01", "neither"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(64), "neither"),
    "plain pickle": (pickle.dumps({"a": 1}), "pickle that torch.save did not write"),
    "header longer than the file": (safetensors_bytes(b"{}")[:-1] + b"{", "damaged"),
    "truncated header": (safetensors_bytes(b'{"a":{"dtype":"F32"}}')[:-4], "longer than the file"),
    "absurd header": ((2**62).to_bytes(8, "little") + b"{}", "longer than the file"),
    "header over the limit": (
        (20 * 2**20).to_bytes(8, "little") + b"{" + bytes(20 * 2**20),
        "at most",
    ),
    "header that is no JSON": (safetensors_bytes(b"{not json}"), "damaged"),
    "tensor beyond the file": (
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}', b"1234"),
        "damaged",
    ),
    "tensor of absurd size": (
        safetensors_bytes(
            b'{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}', b"1234"
        ),
        "damaged",
    ),
    "complex tensor": (
        safetensors_bytes(b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
        "'a' has type C64",
    ),
    "names that collide": (
        safetensors_bytes(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"module.a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            bytes(2),
        ),
        "Two tensors are called 'a'",
    ),
    "zip bomb": (
        zip_bytes({"archive/data.pkl": bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
        "declares 50000000 bytes",
    ),
    "compressed zip": (
        zip_bytes({"archive/data.pkl": b"abc", "archive/x": bytes(9)}, zipfile.ZIP_DEFLATED),
        "compressed or encrypted",
    ),
    "truncated zip": (torch_zip_bytes()[:-30], "missing"),
    "cut zip": (torch_zip_bytes()[:200], "missing"),
    "zip with a comment": (torch_zip_bytes()[:-2] + b"\x03\x00abc", "missing"),
    "zip of a folder": (
        zip_bytes({"train/cat/1.jpg": b"jpg", "train/dog/1.jpg": b"jpg"}),
        "not one of torch.save",
    ),
    "zip of nothing": (b"PK\x03\x04" + zip_bytes({}), "not one of torch.save"),
    "TorchScript program": (
        zip_bytes({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/a.py": b""}),
        "TorchScript",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_without_reading_its_content(
    tmp_path: Path, name: str, children: list[object]
) -> None:
    data, reason = BAD_FILES[name]
    path = write(tmp_path / "upload", data)
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        checkpoints.inspect(path)
    assert caught.value.field == "checkpoint"
    assert caught.value.remedy
    assert str(tmp_path) not in caught.value.detail
    assert not children


def test_every_truncation_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    whole = save(WEIGHTS, tmp_path / "whole", "safetensors").read_bytes()
    for length in range(0, len(whole), 7):
        with pytest.raises(InvalidCheckpoint):
            checkpoints.inspect(write(tmp_path / "cut", whole[:length]))


def test_a_zip_directory_that_lists_one_member_many_times_is_refused(tmp_path: Path) -> None:
    data = zip_bytes({"archive/data.pkl": bytes(10_000)})
    at = data.index(b"PK\x01\x02")
    entry, end = data[at:-22], data[-22:]
    count = 50
    end = end[:8] + struct.pack("<2H2I", count, count, count * len(entry), at) + end[20:]
    path = write(tmp_path / "upload", data[:at] + entry * count + end)
    with pytest.raises(InvalidCheckpoint, match="declares 500000 bytes"):
        checkpoints.inspect(path)


@pytest.mark.parametrize("flags", [1, 0x41])
def test_an_encrypted_member_is_refused(tmp_path: Path, flags: int) -> None:
    data = bytearray(zip_bytes({"archive/data.pkl": b"content"}))
    data[data.index(b"PK\x01\x02") + 8] |= flags
    with pytest.raises(InvalidCheckpoint, match="encrypted"):
        checkpoints.inspect(write(tmp_path / "upload", bytes(data)))


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(24, 10**12, "at most"), (40, 10**12, "within"), (48, 10**15, "within")],
    ids=["members", "size", "offset"],
)
def test_a_zip64_directory_that_claims_too_much_is_refused_before_it_is_read(
    tmp_path: Path, offset: int, value: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(torch_zip_bytes())
    at = data.rindex(b"PK\x06\x06")
    struct.pack_into("<Q", data, at + offset, value)
    if offset == 24:
        struct.pack_into("<Q", data, at + 32, value)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(InvalidCheckpoint, match=reason):
        checkpoints.inspect(write(tmp_path / "upload", bytes(data)))


def test_safetensors_of_every_type_become_float32(tmp_path: Path) -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 100.0])
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8]
    state = {str(kind): values.to(kind) for kind in kinds}
    state["bn.num_batches_tracked"] = torch.tensor(7)
    loaded = checkpoints.load(save(state, tmp_path / "w", "safetensors"))
    assert loaded.pop("bn.num_batches_tracked").dtype == torch.int64
    assert len(loaded) == len(kinds)
    for tensor in loaded.values():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, values)


def test_loaded_tensors_are_not_views_of_the_file(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(4)}, tmp_path / "w", "safetensors")
    before = path.read_bytes()
    checkpoints.load(path)["a"].fill_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
def test_a_torch_file_is_read_by_a_child_and_leaves_nothing(
    tmp_path: Path, kind: Format, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITPRESS_DATABASE_URL", "postgresql://user:secret@host/db")
    shared = torch.randn(6, 3)
    state = {
        "module._orig_mod.a": shared,
        "module._orig_mod.tied": shared,
        "module._orig_mod.slice": shared[1:3].t(),
        "module._orig_mod.half": torch.tensor([1.5], dtype=torch.float16),
        "module._orig_mod.bn.num_batches_tracked": torch.tensor(3),
        "module._orig_mod.none": torch.zeros(0, 4),
    }
    path = save({"epoch": 3, "state_dict": state}, tmp_path / "w.th", kind)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    loaded = checkpoints.load(path, scratch=scratch)
    assert set(loaded) == {"a", "tied", "slice", "half", "bn.num_batches_tracked", "none"}
    assert torch.equal(loaded["a"], shared)
    assert torch.equal(loaded["tied"], shared)
    assert torch.equal(loaded["slice"], shared[1:3].t())
    assert loaded["half"].dtype == torch.float32
    assert loaded["bn.num_batches_tracked"] == 3
    assert loaded["none"].shape == (0, 4)
    assert not list(scratch.iterdir())
    assert len(children) == 1


def test_the_child_gets_no_setting_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_DATABASE_URL", "postgresql://user:secret@host/db")
    assert "secret" not in str(checkpoints._child_environment())


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, kind: Format) -> None:
    marker = tmp_path / "marker"
    path = save({"state_dict": {"w": torch.zeros(1), "x": Payload(marker)}}, tmp_path / "w", kind)
    checkpoints.inspect(path)
    with pytest.raises(InvalidCheckpoint, match=r"posix\.mkdir.*nothing in it was run") as caught:
        checkpoints.load(path)
    assert "safetensors" in str(caught.value.remedy)
    assert not marker.exists()
    # The payload is a real one: a reader that trusts the file runs it.
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_pickle_that_claims_far_more_memory_than_its_size_is_refused(
    tmp_path: Path, children: list[Any]
) -> None:
    numel = 70_001
    path = save({"w": torch.zeros(numel)}, tmp_path / "w", "torch-legacy")
    claimed = b"J" + struct.pack("<i", 2**31 - 1)  # a storage of 8.6 GB
    data = path.read_bytes().replace(b"J" + struct.pack("<i", numel), claimed)
    with pytest.raises(TooLarge, match="more memory") as caught:
        checkpoints.load(write(path, data), memory_margin_bytes=256 * 2**20)
    assert caught.value.field == "checkpoint"
    assert "safetensors" in str(caught.value.remedy)
    assert len(children) == 1


def test_a_reader_that_takes_too_long_is_killed(tmp_path: Path, children: list[Any]) -> None:
    path = save(WEIGHTS, tmp_path / "w")
    with pytest.raises(TooLarge, match=r"longer than 0\.001 seconds") as caught:
        checkpoints.load(path, time_limit_s=0.001)
    assert caught.value.field == "checkpoint"
    assert "safetensors" in str(caught.value.remedy)
    assert len(children) == 1


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGKILL, TooLarge),
        (signal.SIGABRT, TooLarge),
        (signal.SIGXCPU, TooLarge),
        (signal.SIGSEGV, InvalidCheckpoint),
    ],
)
def test_a_reader_that_dies_of_a_limit_says_nothing_against_the_file(
    tmp_path: Path,
    number: signal.Signals,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill = f"import os; os.kill(os.getpid(), {int(number)})"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda _command, **options: popen([sys.executable, "-c", kill], **options),
    )
    with pytest.raises(error) as caught:
        checkpoints.load(save(WEIGHTS, tmp_path / "w"))
    assert type(caught.value) is error


def test_an_interrupt_kills_the_reader(
    tmp_path: Path, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    path = save(WEIGHTS, tmp_path / "w")
    with pytest.raises(KeyboardInterrupt):
        checkpoints.load(path)
    assert len(children) == 1


def test_a_reader_dies_with_its_parent() -> None:
    child = "import os, sys; from models.unpickle import die_with_parent; "
    child += "die_with_parent(os.getppid()); print('ready', flush=True); sys.stdin.read()"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    # The grandchild holds these pipes: its end is seen as the end of its output, although the
    # input on which it waits stays open.
    with subprocess.Popen(
        [sys.executable, "-c", parent, child],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.stdout.read() == b""


def test_a_reader_whose_parent_is_gone_already_ends_at_once() -> None:
    with pytest.raises(SystemExit):
        unpickle.die_with_parent(os.getppid() + 1)


@pytest.mark.parametrize("wrapper", unpickle.WRAPPERS)
def test_a_wrapper_is_taken_off(tmp_path: Path, wrapper: str) -> None:
    path = save({"epoch": 1, wrapper: WEIGHTS, "optimizer": {"lr": 0.1}}, tmp_path / "w")
    assert set(unpickle.read_state_dict(str(path))) == set(WEIGHTS)


def test_a_wrapper_in_a_wrapper_is_taken_off(tmp_path: Path) -> None:
    path = save({"model": {"state_dict": WEIGHTS}}, tmp_path / "w")
    assert set(unpickle.read_state_dict(str(path))) == set(WEIGHTS)


BAD_CONTENTS: dict[str, tuple[object, str]] = {
    "a list": ([torch.zeros(1)], "no state dict"),
    "a bare tensor": (torch.zeros(1), "no state dict"),
    "nothing": ({}, "no state dict"),
    "an empty wrapper": ({"state_dict": {}}, "no state dict"),
    "a number among the weights": ({"w": torch.zeros(1), "epoch": 3}, "'epoch'.*not a tensor"),
    "a nested dictionary": ({"w": torch.zeros(1), "opt": {"lr": 0.1}}, "'opt'.*not a tensor"),
    "a name that is a number": ({1: torch.zeros(1)}, "by a int"),
    "a name kept for metadata": ({"__metadata__": torch.zeros(1)}, "__metadata__"),
    "a complex tensor": ({"w": torch.zeros(1, dtype=torch.complex64)}, "complex64"),
    "a meta tensor": ({"w": torch.zeros(1, device="meta")}, "'w'"),
    "a small storage as a huge tensor": (
        {"w": torch.zeros(1).expand(1000, 10**9)},
        "1000000000000 values",
    ),
    "a whole module": (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
}


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_content_that_is_no_state_dict_is_refused(tmp_path: Path, name: str) -> None:
    content, reason = BAD_CONTENTS[name]
    path = save(content, tmp_path / "w")
    with pytest.raises(unpickle.Refusal, match=reason) as caught:
        unpickle.read_state_dict(str(path))
    assert caught.value.remedy


def test_a_damaged_pickle_inside_a_sound_zip_is_refused(tmp_path: Path) -> None:
    for pickled in (
        b"",
        b"\x80\x02",
        b"\x80\x02}q\x00.garbage",
        b"\x80\x02K\x01K\x02\x86q\x00h\x07.",
    ):
        members = {"archive/data.pkl": pickled, "archive/version": b"3\n"}
        path = write(tmp_path / "w", zip_bytes(members))
        checkpoints.inspect(path)
        with pytest.raises(unpickle.Refusal):
            unpickle.read_state_dict(str(path))


def test_a_truncated_legacy_file_is_refused(tmp_path: Path) -> None:
    whole = save(WEIGHTS, tmp_path / "whole", "torch-legacy").read_bytes()
    for length in range(64, len(whole), 37):
        path = write(tmp_path / "cut", whole[:length])
        assert checkpoints.inspect(path).format == "torch-legacy"
        with pytest.raises(unpickle.Refusal):
            unpickle.read_state_dict(str(path))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([float("-inf")]),
        torch.tensor([1e300], dtype=torch.float64),
    ],
    ids=["nan", "infinity", "beyond float32"],
)
def test_a_tensor_that_is_not_finite_is_refused_by_name(tmp_path: Path, tensor: Tensor) -> None:
    state = {"a": torch.ones(2), "module.layer.weight": tensor}
    path = save(state, tmp_path / "w", "safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"'layer\.weight'") as caught:
        checkpoints.load(path)
    assert caught.value.field == "checkpoint"


def test_repeated_and_mixed_prefixes_are_removed() -> None:
    names = ["module._orig_mod.module.a.b", "_orig_mod.module_c.weight", "features.module.d"]
    cleaned = checkpoints.clean_shapes(dict.fromkeys(names, (1,)))
    assert list(cleaned) == ["a.b", "module_c.weight", "features.module.d"]
    assert checkpoints.clean_shapes(cleaned) == cleaned


@pytest.mark.cifar
@needs_shared
def test_the_shared_legacy_checkpoint_is_read_and_fits_its_network() -> None:
    loaded = checkpoints.load(SHARED / "checkpoints/resnet20-12fca82f.th")
    shapes = {key: tuple(tensor.shape) for key, tensor in loaded.items()}
    checkpoints.check_fit(
        shapes, "resnet20", channels=3, height=32, width=32, classes=10, parameters={}
    )
