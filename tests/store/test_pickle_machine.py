import importlib.util
import io
import mmap
import pickle
import pickletools
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import pickle_machine, pickled_arrays
from store.pickle_machine import read_pickle
from store.pickled_arrays import PickledArray, RefusedPickle

PIXELS = np.random.default_rng(7).integers(0, 256, (3, 3072), dtype=np.uint8)


def python2() -> Any:
    spec = importlib.util.spec_from_file_location("pickled", Path(__file__).with_name("pickled.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What is read

PLAIN = {
    "texts": ["", "a", "é猫", "x" * 300],
    b"bytes": [b"", b"\x00\xff", b"y" * 300],
    "numbers": [0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**62, True, False, None],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": [[[{"a": {b"b": [1]}}]]],
}


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_plain_values_are_read_as_pickle_reads_them(protocol: int) -> None:
    assert read_pickle(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_protocol_0_is_read_where_nothing_is_escaped() -> None:
    value = {"label_names": ["airplane", "bird"], "n": 10000, "big": 2**40, "t": (1, True, None)}
    assert read_pickle(pickle.dumps(value, 0)) == value
    # As Python 2 wrote the list of CIFAR-10's classes.
    assert read_pickle(b"(dp1\nS'label_names'\np2\n(lp3\nS'cat'\np4\naS\"dog\"\np5\nasI7\n.") == 7
    assert read_pickle(b"(dp1\nS'names'\np2\n(lp3\nS'cat'\np4\naS\"dog\"\np5\nas.") == {
        b"names": [b"cat", b"dog"]
    }
    with pytest.raises(RefusedPickle, match="escaped"):
        read_pickle(pickle.dumps("line\nbreak", 0))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        PIXELS,
        np.asfortranarray(PIXELS),
        np.arange(-5, 5),
        np.arange(5, dtype=">i4"),
        np.arange(4, dtype=np.uint16).reshape(2, 2, 1),
        np.random.default_rng(1).integers(0, 256, (40, 3072), dtype=np.uint8),
    ],
    ids=["rows", "columns", "signed", "big-endian", "three-sides", "long"],
)
def test_arrays_are_read_as_numpy_wrote_them(protocol: int, array: np.ndarray[Any, Any]) -> None:
    read = read_pickle(pickle.dumps({"data": array, "again": array}, protocol))
    for key in ("data", "again"):
        assert type(read[key]) is PickledArray
        np.testing.assert_array_equal(read[key].array(), array)
        assert read[key].array().dtype == array.dtype


def test_a_pickle_of_python_2_is_read_by_hand_and_by_python_alike() -> None:
    old = python2()
    data = old.dictionary(
        batch_label=old.text(b"training batch 1 of 5"),
        labels=old.listed([old.number(n) for n in (0, 7, 255, 300)]),
        data=old.pixels(PIXELS),
    )
    ours, theirs = read_pickle(data), pickle.loads(data, encoding="bytes")
    np.testing.assert_array_equal(ours.pop(b"data").array(), theirs.pop(b"data"))
    assert ours == theirs == {b"batch_label": b"training batch 1 of 5", b"labels": [0, 7, 255, 300]}


def test_a_mapped_file_is_read_and_its_large_bytes_are_not_copied(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4000, 3072), dtype=np.uint8)
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": rows}, 4))
    with open(tmp_path / "batch", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tracemalloc.start()
    try:
        array = read_pickle(mapped)["data"].array()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000
    np.testing.assert_array_equal(array, rows)


# What is refused


class Evil:
    """Runs a command where Python's own reader reads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_is_refused_and_nothing_is_called(
    tmp_path: Path, protocol: int
) -> None:
    target = tmp_path / "made"
    for value in (Evil(target), {"data": Evil(target)}, [Evil(target)]):
        with pytest.raises(RefusedPickle):
            read_pickle(pickle.dumps(value, protocol))
    assert not target.exists()
    pickle.loads(pickle.dumps(Evil(target), protocol))
    assert target.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"os\nsystem",
        b"builtins\neval",
        b"numpy\nload",
        b"numpy.core.multiarray\nscalar",
        b"numpy\nndarray.tofile",
        b"_codecs\nlookup",
        b"store.pickled_arrays\nName",
        b"numpy.ndarray\n__class__",
    ],
)
def test_every_other_name_is_refused_by_name(name: bytes) -> None:
    module, attribute = name.decode().split("\n")
    for data in (
        b"c" + name + b"\n(t" + b"R.",
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(attribute)])
        + attribute.encode()
        + b"\x93.",
    ):
        with pytest.raises(RefusedPickle, match=module.split(".")[0]):
            read_pickle(data)


def test_the_machine_imports_calls_and_looks_up_nothing_that_is_named() -> None:
    import ast

    for module in (pickle_machine, pickled_arrays):
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        forbidden = {
            "getattr", "setattr", "eval", "exec", "globals", "locals", "vars",
            "__import__", "import_module", "modules", "loads", "load", "Unpickler", "find_class",
            "__reduce__", "__dict__", "__class__",
        }  # fmt: skip
        assert names.isdisjoint(forbidden)
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in (
                [ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names
            )
        }
        assert imported.isdisjoint({"pickle", "_pickle", "importlib", "os", "sys", "builtins"})


def test_only_opcodes_of_data_are_known() -> None:
    """What can make, fetch or change an object of any class is not among them."""
    dangerous = {
        "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID",
        "NEXT_BUFFER", "READONLY_BUFFER", "LONG4", "DUP", "POP", "POP_MARK", "EMPTY_SET",
        "ADDITEMS", "FROZENSET", "FLOAT", "BINFLOAT",
    }  # fmt: skip
    every = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    known = {every[code] for code in pickle_machine._OPERATIONS} | {"STOP"}
    assert known == set(every.values()) - dangerous


OBJECTS = np.empty(2, dtype=object)
OBJECTS[:] = [{"a": 1}, None]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([1.5]), "kind that is not read"),
        (np.array([True]), "kind that is not read"),
        (np.array(["text"]), "kind that is not read"),
        (OBJECTS, "holds objects|operations"),
        ({1: 2}, "keys"),
        ({(1, 2): 3}, "keys"),
        ({None: 3}, "keys"),
        (1.5, "does not need"),
        ({1, 2}, "does not need|name|wants"),
        (2**3000, "does not need|truncated"),
        (np.float64(1), "wants|kind that is not read"),
        (slice(1), "wants"),
        (object(), "wants|does not need"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_is_not_data_is_refused(value: Any, words: str, protocol: int) -> None:
    with pytest.raises(RefusedPickle, match=words):
        read_pickle(pickle.dumps(value, protocol))


def array_state(shape: bytes, item: bytes, data: bytes) -> bytes:
    made = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU" + bytes([len(item)]) + item + b"K\x00K\x01\x87R"
    return made + b"(K\x01" + shape + dtype + b"\x89" + b"U" + bytes([len(data)]) + data + b"tb."


@pytest.mark.parametrize(
    ("shape", "item", "data"),
    [
        (b"K\x05\x85", b"u1", b"1234"),
        (b"K\x03\x85", b"u1", b"1234"),
        (b"J\xff\xff\xff\xff\x85", b"u1", b""),
        (b"\x8a\x08" + b"\0" * 7 + b"\x40" + b"K\x04\x87"[:2] + b"\x86", b"u1", b""),
        (b"\x8a\x09" + b"\0" * 8 + b"\x01" + b"\x85", b"u1", b""),
        (b"(K\x01K\x01K\x01K\x01K\x01t", b"u1", b"1"),
        (b"U\x01a\x85", b"u1", b"1"),
        (b"\x88\x85", b"u1", b"1"),
        (b"K\x01", b"u1", b"1"),
        (b"K\x01\x85", b"O8", b"12345678"),
        (b"K\x01\x85", b"V8", b"12345678"),
        (b"K\x01\x85", b"u3", b"123"),
        (b"K\x01\x85", b"u1u1", b"1"),
    ],
)
def test_arrays_that_lie_are_refused(shape: bytes, item: bytes, data: bytes) -> None:
    with pytest.raises(RefusedPickle):
        read_pickle(array_state(shape, item, data))


def test_an_honest_array_assembled_in_the_same_way_is_read() -> None:
    read = read_pickle(array_state(b"K\x04\x85", b"u1", b"1234"))
    assert read.array().tolist() == list(b"1234")


@pytest.mark.parametrize("shape", [b"K\x00\x85", b"K\x00J\xff\xff\xff\x7f\x86"])
def test_an_empty_array_is_refused_when_it_is_wanted(shape: bytes) -> None:
    with pytest.raises(RefusedPickle, match="empty"):
        read_pickle(array_state(shape, b"u1", b"")).array()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x02",
        b".",
        b"(.",
        b"K",
        b"K\x01",
        b"K\x01(.",
        b"h\x00.",
        b"j\xff\xff\xff\xff.",
        b"g99999999999999999999\n.",
        b"p0\n.",
        b"a.",
        b"]a.",
        b"K\x01a.",
        b"}K\x01s.",
        b"}K\x01K\x02K\x03(u.",
        b"}(K\x01u.",
        b"e.",
        b"t.",
        b"d.",
        b"(K\x01d.",
        b"\x85.",
        b"K\x01\x86.",
        b"R.",
        b"K\x01)R.",
        b"cnumpy\ndtype\nK\x01R.",
        b"cnumpy\ndtype\n)R.",
        b"cnumpy\ndtype\nK\x05\x85R.",
        b"b.",
        b"])b.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00rot1\x86R.",
        b"c_codecs\nencode\nX\x03\x00\x00\x00\xe7\x8c\xabX\x06\x00\x00\x00latin1\x86R.",
        b"X\xff\xff\xff\xff.",
        b"X\x02\x00\x00\x00\xff\xff.",
        b"T\xff\xff\xff\xffx.",
        b"\x8e" + b"\xff" * 8 + b"x.",
        b"\x96" + b"\xff" * 8 + b"x.",
        b"\x8d" + b"\xff" * 8 + b"x.",
        b"\x95" + b"\xff" * 7,
        b"I12",
        b"I" + b"1" * 30 + b"\n.",
        b"Ia\n.",
        b"I\n.",
        b"I-\n.",
        b"Lx\n.",
        b"S'a\n.",
        b"Sa\n.",
        b"S'\\x41'\n.",
        b"V\\u0041\n.",
        b"V" + b"a" * 5000 + b"\n.",
        b"\x93.",
        b"K\x01K\x02\x93.",
        b"cos\n",
        b"cos",
        b"Pid\n.",
        b"(ios\nsystem\n.",
        b"\x82\x01.",
    ],
)
def test_damaged_programs_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedPickle):
        read_pickle(data)


# What it costs


def peak_of(data: bytes) -> int:
    tracemalloc.start()
    try:
        with suppress(RefusedPickle):
            read_pickle(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        b"]" * 3_000_000,
        b"(" * 3_000_000,
        b"}" * 3_000_000,
        b"]r" + b"\xff\xff\xff\xff" + b"j\xff\xff\xff\xff" * 500_000,
        b"]" + b"\x85" * 3_000_000,
        # One long text that becomes bytes again and again.
        b"(X\x00\x00\x01\x00" + b"a" * 65536
        + b"q\x00X\x06\x00\x00\x00latin1q\x01c_codecs\nencode\nq\x02"
        + b"h\x02h\x00h\x01\x86R" * 100_000,
        b"\x80\x02(" + (b"X\x00\x00\x01\x00" + b"a" * 65536) * 1000,
    ],
    ids=["lists", "marks", "dictionaries", "memo", "tuples", "encoded", "texts"],
)  # fmt: skip
def test_a_small_program_takes_bounded_memory(data: bytes) -> None:
    assert peak_of(data) < 400_000_000


@pytest.mark.slow
def test_nesting_of_any_depth_is_read_or_refused_without_recursion() -> None:
    depth = 400_000
    assert type(read_pickle(b"]" * depth + b"a" * (depth - 1) + b".")) is list
    with pytest.raises(RefusedPickle, match="keys"):
        read_pickle(b"})" + b"\x85" * depth + b"K\x01s.")
    looped = read_pickle(b"]q\x00h\x00a.")
    assert looped[0] is looped


# Anything at all


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_pickle(data)
    except RefusedPickle as fault:
        assert str(fault)


SOUND = pickle.dumps({"data": PIXELS[:, :20], "labels": [1, 2, 3], "f": ["a", b"b"]}, 2)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_a_damaged_pickle_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for place, value in changes:
        data[place] = value
    try:
        value = read_pickle(bytes(data))
        if type(value) is dict:
            for item in value.values():
                if type(item) is PickledArray:
                    item.array()
    except RefusedPickle as fault:
        assert str(fault)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sampled_from([1, 2, 3, 4, 5]))
def test_any_data_comes_back(value: Any, protocol: int) -> None:
    target = io.BytesIO()
    pickle.Pickler(target, protocol).dump(value)
    assert read_pickle(target.getvalue()) == value
