"""Plans: what is a valid one, its JSON, and the refusal of everything else by name."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import canonical_json
from models.attributes import Activation
from models.operators import (
    OPERATORS,
    Activate,
    Add,
    Affine,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    PadChannels,
    Quantize,
    SignPack,
    Subsample,
    TensorSpec,
)
from models.plan import MAX_ELEMENTS, Plan
from store.errors import InvalidArtifact

EVERY_OPERATOR = Plan(
    (4, 8, 8),
    (
        Quantize(name="eight", input="input", bits=8, low=-1.0, step=0.25),
        Conv2d(
            name="grouped",
            input="eight",
            channels=6,
            kernel=(3, 2),
            stride=(2, 2),
            padding=(1, 0),
            dilation=(1, 2),
            groups=2,
            bases=3,
            base_scale=True,
            affine=True,
            activation=Activation("prelu"),
        ),
        SignPack(name="bits", input="grouped", per_channel=True),
        Conv2d(name="signed", input="bits", channels=6, kernel=(3, 3), padding=(1, 1), pad_value=1),
        Conv2d(
            name="float",
            input="grouped",
            channels=6,
            kernel=(1, 1),
            weight="float",
            residual="signed",
            activation=Activation("hardtanh", -2.0, 0.5),
        ),
        Add(name="sum", inputs=("float", "grouped"), activation=Activation("relu")),
        Affine(name="normal", input="sum"),
        Activate(name="active", input="normal", activation=Activation("relu")),
        PadChannels(name="padded", input="active", before=1, after=2),
        Subsample(name="every_other", input="padded", stride=(2, 1)),
        MaxPool2d(name="max", input="padded", kernel=(2, 1), stride=(2, 1), padding=(0, 0)),
        Concat(name="joined", inputs=("every_other", "max")),
        AvgPool2d(name="mean", input="joined", kernel=(2, 3), stride=(1, 1), padding=(1, 0)),
        Flatten(name="flat", input="mean"),
        Linear(name="logits", input="flat", channels=5, affine=True),
    ),
    "logits",
)


def conv(name="conv", source="input", **attributes):
    return Conv2d(name=name, input=source, **{"channels": 4, "kernel": (3, 3)} | attributes)


def test_the_plan_of_this_page_has_every_operator():
    assert {node.op for node in EVERY_OPERATOR.nodes} == set(OPERATORS)


def test_shapes_follow_the_operators():
    shapes = dict(EVERY_OPERATOR.shapes)
    assert shapes == {
        "input": (4, 8, 8),
        "eight": (4, 8, 8),
        "grouped": (6, 4, 3),
        "bits": (6, 4, 3),
        "signed": (6, 4, 3),
        "float": (6, 4, 3),
        "sum": (6, 4, 3),
        "normal": (6, 4, 3),
        "active": (6, 4, 3),
        "padded": (9, 4, 3),
        "every_other": (9, 2, 3),
        "max": (9, 2, 3),
        "joined": (18, 2, 3),
        "mean": (18, 3, 1),
        "flat": (54,),
        "logits": (5,),
    }
    assert EVERY_OPERATOR.output_shape == (5,)


def test_tensors_follow_the_operators():
    assert dict(EVERY_OPERATOR.tensors) == {
        "grouped.bits": TensorSpec("U8", (3, 6, 2)),  # 2 channels * 3 * 2 = 12 bits
        "grouped.base_scale": TensorSpec("F32", (3, 6)),
        "grouped.affine": TensorSpec("F32", (2, 6)),
        "grouped.slope": TensorSpec("F32", (6,)),
        "bits.threshold": TensorSpec("F32", (2, 6)),
        "signed.bits": TensorSpec("U8", (1, 6, 7)),  # 54 bits
        "float.weight": TensorSpec("F32", (6, 6, 1, 1)),
        "normal.affine": TensorSpec("F32", (2, 6)),
        "logits.bits": TensorSpec("U8", (1, 5, 7)),
        "logits.affine": TensorSpec("F32", (2, 5)),
    }


def test_cost_and_lifetimes():
    plan = Plan(
        (2, 4, 4),
        (
            conv("a", channels=3, kernel=(1, 1)),
            conv("b", "a", channels=5, kernel=(3, 3), groups=1),
            conv("c", "a", channels=5, kernel=(3, 3), residual="b"),
        ),
        "c",
    )
    assert plan.macs == 3 * 2 * 16 + 2 * (5 * 3 * 9 * 4)
    assert plan.last_reader == {"input": "a", "a": "c", "b": "c"}
    # The input (32) and a (48) at first; a, b and c (20 each) at the end.
    assert plan.peak_elements == 88


def test_json_round_trip_is_exact_and_leaves_out_defaults():
    data = EVERY_OPERATOR.to_json()
    assert Plan.from_json(json.loads(json.dumps(data))) == EVERY_OPERATOR
    nodes = {node["name"]: node for node in data["nodes"]}
    assert nodes["flat"] == {"op": "flatten", "name": "flat", "input": "mean"}
    assert nodes["logits"] == {
        "op": "linear",
        "name": "logits",
        "input": "flat",
        "channels": 5,
        "affine": True,
    }
    assert nodes["float"]["activation"] == {"kind": "hardtanh", "low": -2.0, "high": 0.5}


def test_defaults_may_be_written_out():
    data = Plan((3, 5, 5), (conv(),), "conv").to_json()
    data["nodes"][0] |= {"stride": [1, 1], "residual": None, "weight": "bits", "groups": 1}
    assert Plan.from_json(data) == Plan((3, 5, 5), (conv(),), "conv")


@pytest.mark.parametrize(
    ("nodes", "output", "message"),
    [
        ([], "conv", "1 to 4096 nodes"),
        ([conv(source="ghost")], "conv", "'ghost', which no earlier node makes"),
        ([conv("a", "b"), conv("b", "a")], "b", "'b', which no earlier node makes"),
        ([conv("a", "a")], "a", "'a', which no earlier node makes"),
        ([conv("a"), conv("a")], "a", "its name is taken"),
        ([conv("input")], "input", "its name is taken"),
        ([conv("a"), conv("b")], "b", "'a' .*nothing reads its result"),
        ([conv("a"), conv("b", "a")], "a", "'b' .*nothing reads|read by a node"),
        ([conv()], "ghost", "output 'ghost' is not made"),
        ([conv(groups=2)], "conv", "3 to 4 channels in 2 groups"),
        ([conv(channels=5, groups=3)], "conv", "3 to 5 channels in 3 groups"),
        ([conv(kernel=(6, 1))], "conv", "kernel is larger"),
        ([conv(kernel=(3, 3), dilation=(3, 3))], "conv", "kernel is larger"),
        ([conv(weight="float", bases=2)], "conv", "neither bases"),
        ([conv("a"), conv("b", residual="a", channels=5)], "b", "residual is"),
        ([conv("a"), Linear(name="b", input="a", channels=2)], "b", "reads a vector"),
        ([Flatten(name="a", input="input"), conv("b", "a")], "b", r"reads a map \(C, H, W\)"),
        (
            [Flatten(name="a", input="input"), Subsample(name="b", input="a", stride=(2, 2))],
            "b",
            "reads a map",
        ),
        ([conv("a"), Add(name="b", inputs=("a", "input"))], "b", "adds values of shapes"),
        ([conv("a"), Concat(name="b", inputs=("a", "input"))], "b", "more than their channels"),
        (
            [MaxPool2d(name="a", input="input", kernel=(2, 2), stride=(1, 1), padding=(2, 0))],
            "a",
            "more than half",
        ),
    ],
)
def test_plan_that_does_not_fit_together_is_refused(nodes, output, message):
    with pytest.raises(InvalidArtifact, match=message):
        Plan((3, 5, 5), tuple(nodes), output)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"channels": 0}, "channels must be an integer in 1"),
        ({"channels": True}, "channels must be an integer"),
        ({"channels": 2**40}, "channels must be an integer"),
        ({"kernel": (3,)}, "kernel must be a pair"),
        ({"kernel": [3, 3]}, "kernel must be written as"),
        ({"stride": (0, 1)}, "stride must be an integer"),
        ({"padding": (-1, 0)}, "padding must be"),
        ({"weight": "int4"}, "weight must be one of bits, float"),
        ({"pad_value": 2}, "pad_value must be one of 0, 1"),
        ({"affine": 1}, "affine must be true or false"),
        ({"activation": "relu"}, "activation must be an object"),
        ({"activation": Activation("gelu")}, "'gelu' must be one of relu"),
        ({"activation": Activation("hardtanh", 1.0, 1.0)}, "low below high"),
        ({"name": ""}, "name must be a name"),
        ({"name": "a/b"}, "name must be a name"),
        ({"name": "a" * 201}, "name must be a name"),
        ({"source": "ä"}, "input must be a name"),
    ],
)
def test_attribute_out_of_range_is_refused_by_name(attributes, message):
    with pytest.raises(InvalidArtifact, match=message):
        Plan((3, 5, 5), (conv(**attributes),), "conv")


@pytest.mark.parametrize(
    ("low", "step", "message"),
    [
        (float("nan"), 1.0, "low must be a finite number"),
        (0.0, 0.0, "step must be a positive"),
        (0.0, 1e-45, "step must be a positive"),
        (1e39, 1.0, "low must be a finite"),
        (0, 1.0, "low must be written as 0.0"),
        (10**400, 1.0, "low must be a finite"),
    ],
)
def test_quantizer_needs_numbers_that_float32_holds(low, step, message):
    node = Quantize(name="q", input="input", bits=8, low=low, step=step)
    with pytest.raises(InvalidArtifact, match=message):
        Plan((1, 2, 2), (node,), "q")


@pytest.mark.parametrize(
    ("shape", "nodes"),
    [
        ((1, 8192, 8192 + 1), [Flatten(name="n0", input="input")]),
        ((2, 4096, 4096), [PadChannels(name="n0", input="input", after=1 << 20)]),
        ((1, 1, 1), [conv("n0", kernel=(1, 1), padding=(1024, 1024), channels=1 << 20)]),
        ((1 << 20, 1, 1), [conv("n0", kernel=(9, 9), padding=(4, 5), channels=1)]),
        (
            (1, 1024, 1024),
            [Concat(name=f"n{i}", inputs=(f"n{i - 1}" if i else "input",) * 8) for i in range(3)],
        ),
        # Many values, none of them too large alone, all alive at once.
        (
            (1, 4096, 4096),
            [
                *(Affine(name=f"n{i}", input="input") for i in range(20)),
                Concat(name="n20", inputs=tuple(f"n{i}" for i in range(20))),
            ],
        ),
        (
            (1, 1, 1),
            [conv("n0", kernel=(1, 1), padding=(1024, 1024), groups=1, channels=16)] * 5000,
        ),
    ],
)
def test_plan_without_bounds_is_refused(shape, nodes):
    with pytest.raises(InvalidArtifact, match=r"over|1 to 4096|alive at once"):
        Plan(shape, tuple(nodes), nodes[-1].name)


def test_plan_of_too_much_work_is_refused():
    nodes = tuple(
        conv(f"n{i}", f"n{i - 1}" if i else "input", channels=512, kernel=(9, 9), padding=(4, 4))
        for i in range(30)
    )
    with pytest.raises(InvalidArtifact, match="multiply-accumulates"):
        Plan((512, 64, 64), nodes, "n29")
    assert Plan((512, 64, 64), nodes[:2], "n1").macs < 2**40


def damaged(change):
    data = copy.deepcopy(EVERY_OPERATOR.to_json())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(opset=2), "opset 2; this release reads opset 1"),
        (lambda d: d.update(opset=True), "opset True"),
        (lambda d: d.pop("opset"), "opset None"),
        (lambda d: d.pop("output"), "missing or unknown members: 'output'"),
        (lambda d: d.update(extra=1), "'extra'"),
        (lambda d: d.update(output=["logits"]), "output is not a name"),
        (lambda d: d.update(nodes={}), "nodes are not a list"),
        (lambda d: d["nodes"].insert(0, "conv"), "Node 0 of the plan is not an object"),
        (lambda d: d["nodes"][3].update(op="conv3d"), "operator 'conv3d', which is not in opset 1"),
        (lambda d: d["nodes"][3].update(op=["conv2d"]), "which is not in opset 1"),
        (lambda d: d["nodes"][3].pop("op"), "operator None"),
        (lambda d: d["nodes"][3].update(strides=[1, 1]), "'signed' .*no attribute 'strides'"),
        (lambda d: d["nodes"][3].pop("channels"), "attribute channels is missing"),
        (lambda d: d["nodes"][3].pop("name"), "name of node 3"),
        (lambda d: d["nodes"][3].update(name=3), "name of node 3"),
        (lambda d: d["nodes"][3].update(kernel=[3, 3.0]), "kernel must be an integer"),
        (lambda d: d["nodes"][3].update(kernel="33"), "kernel must be a pair"),
        (lambda d: d["nodes"][3].update(residual=3), "residual must be a name"),
        (lambda d: d["nodes"][5].update(inputs=["float"]), "inputs must be a list of 2 to 2"),
        (lambda d: d["nodes"][5].update(inputs="ab"), "inputs must be a list"),
        (lambda d: d["nodes"][5].update(activation={"kind": "relu", "low": 0}), "exactly"),
        (lambda d: d["nodes"][5].update(activation={"kind": ["relu"]}), "must be one of relu"),
        (lambda d: d["nodes"][7].update(activation=None), "must be an object"),
        (lambda d: d["nodes"][0].update(bits=3), "bits must be one of 8, 4, 2, 1"),
        (lambda d: d["nodes"][0].update(bits=8.0), "bits must be one of"),
        (lambda d: d["nodes"].pop(3), "'signed', which no earlier node makes"),
        (lambda d: d["nodes"].reverse(), "which no earlier node makes"),
        (lambda d: d.update(input_shape=[4, 8]), "input shape is not"),
        (lambda d: d.update(input_shape=[4, 8, -8]), "input shape must be an integer"),
        (lambda d: d.update(input_shape=[4, 8192, 8192]), "over"),
        (lambda d: d.update(input_shape=4), "input shape is not"),
    ],
)
def test_damaged_json_is_refused_naming_the_defect(change, message):
    with pytest.raises(InvalidArtifact, match=message):
        Plan.from_json(damaged(change))


@pytest.mark.parametrize("data", [None, [], "plan", 1])
def test_plan_that_is_no_object_is_refused(data):
    with pytest.raises(InvalidArtifact, match="not an object"):
        Plan.from_json(data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["input", "grouped", "relu", "conv2d", 2**70, MAX_ELEMENTS]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """All paths to values within a JSON value."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


PLACES = [path for path in places(EVERY_OPERATOR.to_json()) if path]


@settings(deadline=None, max_examples=250)
@given(st.lists(st.tuples(st.sampled_from(PLACES), json_values), min_size=1, max_size=3))
def test_any_json_gives_a_plan_or_the_one_error(changes):
    data = EVERY_OPERATOR.to_json()
    for path, value in changes:
        target = data
        try:
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
        except (TypeError, LookupError):
            continue
    try:
        plan = Plan.from_json(data)
    except InvalidArtifact as error:
        assert error.detail
        return
    # Whatever is let through is a plan in every respect.
    assert Plan.from_json(json.loads(canonical_json.dump(plan.to_json()))) == plan
    assert all(0 < size <= MAX_ELEMENTS for shape in plan.shapes.values() for size in shape)


def test_canonical_json_has_one_spelling():
    text = canonical_json.dump({"b": [1.0, 0.1, 1], "a": "é"})
    assert text == '{"a":"\\u00e9","b":[1.0,0.1,1]}'
    assert canonical_json.load(text) == {"b": [1.0, 0.1, 1], "a": "é"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_what_is_not_json_is_not_written(value):
    with pytest.raises(ValueError):
        canonical_json.dump({"value": value})


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        "[NaN]",
        "[-Infinity]",
        "[1e999]",
        '"\\ud800"',
        "[" * 100_000,
        "{",
        "",
        "9" * 10_000,
    ],
)
def test_doubtful_json_is_not_read(text):
    with pytest.raises(ValueError):
        canonical_json.load(text)
