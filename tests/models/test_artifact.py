"""The artifact file: exact, deterministic, small, and closed to damaged content."""

import dataclasses
import json
import math
import os
import stat
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import artifact as artifacts
from models.artifact import Artifact
from models.layers import float32_bytes
from models.operators import Conv2d, Flatten, Linear, SignPack
from models.plan import Plan
from models.preprocessing import InputSpec
from models.registry import ARCHITECTURES, build
from store.errors import InvalidArtifact

SPEC = InputSpec(3, 2, 2, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def tiny(**changes):
    """A binary 3 x 3 convolution and a float linear layer, with values that are easy to damage."""
    plan = Plan(
        (3, 2, 2),
        (
            Conv2d(
                name="conv", input="input", channels=2, kernel=(3, 3), padding=(1, 1), affine=True
            ),
            SignPack(name="sign", input="conv", per_channel=True),
            Flatten(name="flat", input="sign"),
            Linear(name="fc", input="flat", channels=2, weight="float"),
        ),
        "fc",
    )
    tensors = {
        "conv.bits": np.arange(8, dtype=np.uint8).reshape(1, 2, 4) & 7,
        "conv.affine": np.array([[1, 2], [3, 4]], np.float32),
        "sign.threshold": np.array([[1, -1], [0.5, 0.5]], np.float32),
        "fc.weight": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8),
    }
    parts = {
        "plan": plan,
        "tensors": tensors,
        "input": SPEC,
        "labels": ("cat", "dög"),
        "provenance": {"seed": 3, "spec": {"name": "tiny"}},
        "accuracy": {"packed": 0.75},
    }
    return Artifact(**(parts | changes))


DATA = artifacts.encode(tiny())


def header_of(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def file_of(outer, tensors):
    text = json.dumps(outer).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def with_metadata(change):
    """The tiny file with its bitpress metadata changed in place by ``change``."""
    outer, tensors = header_of(DATA)
    inner = json.loads(outer["__metadata__"]["bitpress"])
    inner = change(inner) or inner
    outer["__metadata__"]["bitpress"] = inner if isinstance(inner, str) else json.dumps(inner)
    return file_of(outer, tensors)


def with_header(change):
    outer, tensors = header_of(DATA)
    change(outer)
    return file_of(outer, tensors)


def with_tensor(name, index, value):
    tensors = {key: array.copy() for key, array in tiny().tensors.items()}
    tensors[name][index] = value
    return tensors


def same(a, b):
    assert (a.plan, a.input, a.labels) == (b.plan, b.input, b.labels)
    assert (a.provenance, a.accuracy) == (b.provenance, b.accuracy)
    assert list(a.tensors) == list(b.tensors)
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype
        assert np.array_equal(tensor, b.tensors[name])


def test_file_round_trip_is_exact(tmp_path):
    path = tmp_path / "tiny.safetensors"
    digest = artifacts.write(tiny(), path)
    same(artifacts.read(path), tiny())
    assert path.read_bytes() == DATA
    assert digest == artifacts.digest(DATA) == artifacts.digest(path)
    assert digest.startswith("sha256:") and len(digest) == 71


def test_heading_is_read_without_the_tensors(tmp_path):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(DATA[:-1])
    heading = artifacts.read_heading(path)
    assert (heading.input, heading.labels) == (SPEC, ("cat", "dög"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        DATA[:7],
        DATA[:100],
        b"\xff" * 64,
        with_metadata(lambda inner: inner.pop("input")),
        with_metadata(lambda inner: {**inner, "input": 3}),
        with_metadata(lambda inner: {**inner, "labels": "cat"}),
        with_metadata(lambda inner: {**inner, "labels": [1, 2]}),
    ],
)
def test_damaged_heading_is_rejected(tmp_path, data):
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with pytest.raises(InvalidArtifact):
        artifacts.read_heading(path)


def test_lowered_network_survives_the_file(small_artifact):
    same(artifacts.decode(artifacts.encode(small_artifact)), small_artifact)


def test_equal_artifacts_give_equal_bytes():
    tensors = dict(reversed(tiny().tensors.items()))
    provenance = {"spec": {"name": "tiny"}, "seed": 3}
    assert artifacts.encode(tiny(tensors=tensors, provenance=provenance)) == DATA
    assert artifacts.encode(artifacts.decode(DATA)) == DATA
    assert artifacts.encode(tiny(provenance={"seed": 4})) != DATA


def test_header_is_one_metadata_key_of_canonical_json():
    outer, _ = header_of(DATA)
    assert set(outer["__metadata__"]) == {"bitpress"}
    text = outer["__metadata__"]["bitpress"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert "d\\u00f6g" in text


def test_written_file_replaces_another_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    artifacts.write(tiny(), path)
    assert path.read_bytes() == DATA
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        artifacts.write(tiny(), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_tensors_cannot_be_changed_by_accident():
    artifact = artifacts.decode(DATA)
    with pytest.raises(TypeError):
        artifact.tensors["conv.affine"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        artifact.tensors["conv.affine"][0, 0] = 9


def test_vgg9_is_thirty_times_smaller(binarize, make_artifact, tmp_path):
    channels, height, width = shape = ARCHITECTURES["vgg9"].default_input
    net = build("vgg9", channels=channels, height=height, width=width, classes=10, parameters={})
    float_bytes = float32_bytes(net)
    binarize(net)
    # A provenance as long as a job's.
    artifact = dataclasses.replace(make_artifact(net, shape), provenance={"spec": "x" * 3000})
    path = tmp_path / "vgg9.safetensors"
    artifacts.write(artifact, path)
    assert artifacts.compression_ratio(float_bytes, path) >= 30
    (header_bytes,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert header_bytes < 15_000
    floats = sum(t.nbytes for n, t in artifact.tensors.items() if not n.endswith(".bits"))
    assert floats == sum(
        2 * 4 * node.channels for node in artifact.plan.nodes if "affine" in vars(node)
    )


def test_several_bases_unpack_to_one_array():
    conv = Conv2d(name="conv", input="input", channels=2, kernel=(2, 2), bases=3)
    plan = Plan((3, 2, 2), (conv, Flatten(name="flat", input="conv")), "flat")
    bits = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) & 15
    codes = artifacts.binary_codes(tiny(plan=plan, tensors={"conv.bits": bits}))["conv"]
    assert codes.shape == (3, 2, 3, 2, 2)
    # Byte 1 holds bits 8 to 11: the last channel of the third tap, and the last tap.
    assert codes[2, 1, 2, 1, 0] == (1 if bits[2, 1, 1] & 1 else -1)
    assert np.array_equal((codes == 1).sum(axis=(2, 3, 4)), np.bitwise_count(bits).sum(axis=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("cat",)}, "1 labels for an output of shape"),
        ({"labels": ("cat", "cat")}, "given twice"),
        ({"labels": ("cat", "")}, "not text"),
        ({"labels": ("cat", 3)}, "not text"),
        ({"labels": ("cat", "x" * 201)}, "not text"),
        ({"input": InputSpec(3, 4, 4, (0.0,) * 3, (1.0,) * 3)}, "the input specification makes"),
        ({"accuracy": {"packed": 1.5}}, "accuracy 'packed' is not"),
        ({"accuracy": {"packed": math.nan}}, "accuracy 'packed' is not"),
        ({"accuracy": {"packed": True}}, "accuracy 'packed' is not"),
        ({"tensors": {}}, "'conv.affine' is missing"),
        ({"tensors": tiny().tensors | {"more.bits": np.zeros(1, np.uint8)}}, "belongs to no node"),
        ({"tensors": tiny().tensors | {"fc.weight": np.zeros((2, 8))}}, "float64"),
        ({"tensors": tiny().tensors | {"fc.weight": np.zeros((8, 2), np.float32)}}, "plan wants"),
        ({"tensors": with_tensor("fc.weight", (1, 1), math.nan)}, "'fc.weight' holds NaN"),
        ({"tensors": with_tensor("conv.affine", (0, 1), math.inf)}, "'conv.affine' holds NaN"),
        ({"tensors": with_tensor("conv.bits", (0, 1, 3), 8)}, "padding bit"),
        ({"tensors": with_tensor("sign.threshold", (0, 0), 0.5)}, "sense"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InvalidArtifact, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    "provenance", [{"loss": math.nan}, {"path": b"x"}, {"x": {1, 2}}, {"text": "\ud800"}]
)
def test_provenance_that_is_not_json_is_not_written(provenance):
    with pytest.raises(InvalidArtifact, match="header") as caught:
        artifacts.encode(tiny(provenance=provenance))
    assert caught.value.field == "provenance"


def test_endless_provenance_is_not_written():
    with pytest.raises(InvalidArtifact, match="over 16777216 bytes"):
        artifacts.encode(tiny(provenance={"x": "y" * (1 << 24)}))


def shrink(tensor, **changes):
    def change(outer):
        outer[tensor] |= changes

    return change


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (DATA[:7], "truncated"),
        (DATA[:100], "truncated"),
        (DATA[:-1], "damaged"),
        (DATA + b"\0", "damaged"),
        (b"PK\3\4" + DATA[4:], "truncated, or not a safetensors file"),
        (struct.pack("<Q", 2**63) + DATA[8:], "truncated, or not"),
        (struct.pack("<Q", 2**24 + 1) + b" " * (2**24 + 1), "truncated, or not"),
        (DATA[:8] + b"\xff" + DATA[9:], "not usable JSON"),
        (struct.pack("<Q", 2) + b"[]", "exactly the key 'bitpress'"),
        (struct.pack("<Q", 2) + b"{}", "exactly the key 'bitpress'"),
        (with_header(lambda o: o["__metadata__"].update(more="x")), "exactly the key"),
        (with_header(lambda o: o["__metadata__"].update(bitpress=1)), "not text"),
        (with_header(lambda o: o.update(__metadata__="x")), "exactly the key"),
        (with_header(shrink("fc.weight", dtype="BF16")), "damaged"),
        (with_header(shrink("fc.weight", dtype="I32")), "type I32, not U8 or F32"),
        (with_header(shrink("fc.weight", shape=[2, 2**62])), "damaged"),
        (with_header(shrink("fc.weight", shape=[-1])), "damaged"),
        (with_header(shrink("fc.weight", data_offsets=[0, 4])), "damaged"),
        (with_header(shrink("fc.weight", shape=[16])), r"float32 \(16,\); the plan wants"),
        (with_header(lambda o: o.update(other=o.pop("fc.weight"))), "'fc.weight' is missing"),
        (with_metadata(lambda m: "{"), "metadata is not usable JSON"),
        (with_metadata(lambda m: "[1]"), "not a JSON object"),
        (with_metadata(lambda m: "[" * 100_000), "not usable JSON"),
        (with_metadata(lambda m: '{"format":1,"format":1}'), "given twice"),
        (with_metadata(lambda m: m.update(format=2)), "of format 2; this release reads format 1"),
        (with_metadata(lambda m: m.update(format=1.0)), "format 1.0"),
        (with_metadata(lambda m: m.update(more=1)), "members: 'more'"),
        (with_metadata(lambda m: m.pop("labels") and None), "members: 'labels'"),
        (with_metadata(lambda m: m.update(labels="cat")), "labels are not a list"),
        (with_metadata(lambda m: m.update(labels=[["cat"], "dog"])), "not text"),
        (with_metadata(lambda m: m.update(provenance=[])), "provenance is not an object"),
        (with_metadata(lambda m: m.update(accuracy=None)), "accuracy is not an object"),
        (with_metadata(lambda m: m.update(accuracy={"packed": "1"})), "accuracy 'packed'"),
        (with_metadata(lambda m: m.update(plan={})), "opset None"),
        (with_metadata(lambda m: m["plan"].update(opset=7)), "opset 7"),
        (with_metadata(lambda m: m["plan"]["nodes"][0].update(op="conv9")), "'conv9'"),
        (with_metadata(lambda m: m["plan"]["nodes"][0].update(channels=2**30)), "channels must"),
        (with_metadata(lambda m: m["plan"]["nodes"][0].update(channels=3)), "plan wants"),
        (with_metadata(lambda m: m["input"].pop("std") and None), "input specification: .*'std'"),
        (with_metadata(lambda m: m["input"].update(std=[0, 1, 1])), "std must be positive"),
        (with_metadata(lambda m: m["input"].update(mean=[0, 1])), "mean must be a list of 3"),
        (with_metadata(lambda m: m["input"].update(height=True)), "height and width"),
        (with_metadata(lambda m: m["input"].update(channels=[3])), "channels must be 1 or 3"),
        (with_metadata(lambda m: m["input"].update(value_range=[1, 0])), "low end below"),
        (with_metadata(lambda m: m.update(input=None)), "must be an object"),
    ],
)  # fmt: skip
def test_damaged_file_is_refused_naming_the_defect(data, message):
    with pytest.raises(InvalidArtifact, match=message):
        artifacts.decode(data)


def test_key_given_twice_in_the_container_is_refused():
    outer, tensors = header_of(DATA)
    text = json.dumps(outer)[:-1] + ',"fc.weight":' + json.dumps(outer["fc.weight"]) + "}"
    with pytest.raises(InvalidArtifact, match="given twice"):
        artifacts.decode(struct.pack("<Q", len(text)) + text.encode() + tensors)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_flipped_bytes_give_a_sound_artifact_or_the_one_error(changes):
    data = bytearray(DATA)
    for place, value in changes:
        data[place] = value
    try:
        artifact = artifacts.decode(bytes(data))
    except InvalidArtifact as error:
        assert error.detail
        return
    # What is read can be written and read again: nothing in it is out of order.
    same(artifacts.decode(artifacts.encode(artifact)), artifact)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(DATA)), st.binary(max_size=40))
def test_cut_and_continued_files_are_refused(length, tail):
    data = DATA[:length] + tail
    if data != DATA:
        with pytest.raises(InvalidArtifact):
            artifacts.decode(data)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(InvalidArtifact):
        artifacts.decode(data)
    with pytest.raises(InvalidArtifact):
        artifacts.decode(struct.pack("<Q", len(data)) + data)


def test_missing_file_is_the_callers_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        artifacts.read(tmp_path / "nothing")
