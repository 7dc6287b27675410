"""Every rule against central differences of ONNX's reference evaluator in float64.

The model under test is x → operator → y with further inputs as constants; its gradient for a
random v must be (f(x + h·u) − f(x − h·u))·v / 2h for random directions u, f evaluated by onnx's
ReferenceEvaluator. With h = 1e-5 and values of size one, the truncation error is h²·f‴/6 ≈ 1e-10
and the rounding error 2^-53·|f|/h ≈ 1e-11; 1e-6 leaves room for third derivatives of 1e4.
The backward runs in ONNX Runtime, in double: a rule's formula must be exact, not just close.
Where ONNX Runtime has no double kernel, it runs in float32 and the bound is 2e-3.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mmcompile.calib.gradient import differentiate
from mmcompile.calib.gradient.table import RULES

STEP = 1e-5
DOUBLE, SINGLE = np.float64, np.float32


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator, its inputs, and the positions of those that are differentiated.

    An `oracle` computes the output from the one input where the reference evaluator can't: its
    Erf is an approximation to 1e-8, and its Pad takes no negative numbers.
    """

    op: str
    inputs: tuple
    wanted: tuple = (0,)
    attributes: dict = dataclasses.field(default_factory=dict)
    outputs: int = 1
    opsets: tuple = (15, 18, 21, 25)
    dtype: type = DOUBLE
    name: str = ""
    oracle: Callable | None = None


def case(op, *inputs, **options):
    fields = {field.name for field in dataclasses.fields(Case)}
    known = {key: value for key, value in options.items() if key in fields}
    attributes = {key: value for key, value in options.items() if key not in fields}
    return Case(op, inputs, **{"name": op, "attributes": attributes} | known)


def normal(*shape, seed=0, positive=False):
    """Normal numbers, each at least 0.05 from zero, where many functions have a kink."""
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    values = np.where(np.abs(values) < 0.05, 0.3, values)
    return np.abs(values) + 0.3 if positive else values


def ints(*values):
    return np.array(values, np.int64)


ERF = np.vectorize(math.erf)
X = normal(2, 3, 4)
P = normal(2, 3, 4, positive=True)
NEW, OLD = (20, 25), (15,)
BOTH = (0, 1)

CASES = [
    *(case(op, X) for op in "Abs Cos Exp Identity Neg Relu Sigmoid Sin Tanh".split()),
    *(case(op, X) for op in "LeakyRelu Softplus Softsign".split()),
    *(case(op, P) for op in "Log Reciprocal Sqrt".split()),
    case("Erf", X, oracle=ERF),
    case("Elu", X, dtype=SINGLE),
    case("Elu", X, alpha=0.7, dtype=SINGLE, name="elu-alpha"),
    case("HardSigmoid", normal(9) * 3, alpha=0.3, beta=0.4, dtype=SINGLE),
    case("LeakyRelu", X, alpha=0.3, name="leaky-alpha"),
    case("Clip", X, np.float64(-0.5), np.float64(0.7)),
    case("Clip", X, "", np.float64(0.7), name="clip-upper"),
    case("Clip", X, np.float64(-0.5), name="clip-lower"),
    case("PRelu", X, normal(3, 1, seed=1)),
    case("Gelu", X, opsets=NEW, dtype=SINGLE, oracle=lambda x: x * (1 + ERF(x / 2**0.5)) / 2),
    case("Gelu", X, opsets=NEW, approximate="tanh", name="gelu-tanh"),
    case("Swish", X, opsets=(24, 25), alpha=1.3, dtype=SINGLE),
    case("Dropout", X, opsets=(15, 22)),
    case("Cast", X, to=TensorProto.DOUBLE),
    case("CastLike", X, normal(1)),
    # Arithmetic with broadcasting on either side, and of both sides at once.
    *(
        case(op, a, b, wanted=BOTH, name=f"{op}-{label}")
        for op in ("Add", "Sub", "Mul", "Div")
        for label, a, b in (
            ("same", X, P),
            ("right", X, normal(3, 1, seed=2)),
            ("left", normal(4, seed=3), P),
            ("both", normal(2, 1, 4), normal(3, 1, seed=2)),
            ("scalar", X, normal()),
        )
    ),
    *(
        case(op, X, normal(3, 1, seed=5), normal(4, seed=6), wanted=(0, 1, 2))
        for op in ("Sum", "Mean", "Max", "Min")
    ),
    case("Pow", X, np.float64(2), name="pow-square"),
    case("Pow", X, np.float64(3), name="pow-cube"),
    case("Pow", P, np.float64(-0.5), name="pow-root"),
    case("Pow", normal(3, 1, positive=True), normal(4, seed=8), name="pow-broadcast"),
    case("Where", X > 0, X, normal(4, seed=9), wanted=(1, 2)),
    case("Where", normal(2, 1, 4) > 0, normal(3, 1), X, wanted=(1, 2), name="where-broadcast"),
    case("Softmax", X),
    case("Softmax", X, axis=1, name="softmax-axis"),
    case("LogSoftmax", X, axis=-2, opsets=NEW),
    case("LayerNormalization", X, normal(4), normal(4, seed=1), opsets=NEW),
    case("LayerNormalization", X, normal(3, 4), opsets=NEW, axis=1, epsilon=0.1, name="ln-axis"),
    case("RMSNormalization", X, normal(4), opsets=(23, 25), epsilon=0.1, dtype=SINGLE),
    case(
        "RMSNormalization", X, normal(3, 4), opsets=(23, 25), axis=-2, dtype=SINGLE, name="rms-axis"
    ),
    *(
        case(op, P, *axes, opsets=(opset,), keepdims=keep, name=f"{op}-{opset}-{keep}", **old)
        for op in (
            "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSumSquare"
        ).split()
        for keep in (0, 1)
        for opset, axes, old in ((15, (), {"axes": [-1, 0]}), (20, (ints(-1, 0),), {}))
    ),
    case("ReduceSum", X, ints(1, -1), keepdims=0),
    case("ReduceSum", X, keepdims=0, name="sum-all"),
    case("ReduceMean", X, keepdims=1, name="mean-all"),
    case("ReduceMax", X, keepdims=0, name="max-all"),
    case("CumSum", X, np.int64(1)),
    case("CumSum", X, np.int64(-1), reverse=1, exclusive=1, name="cumsum-reverse"),
    case("Reshape", X, ints(4, -1)),
    case("Flatten", X, axis=2),
    case("Squeeze", normal(2, 1, 3, 1), ints(-1, 1)),
    case("Unsqueeze", X, ints(0, -1)),
    case("Transpose", X, perm=[2, 0, 1]),
    case("Transpose", X, name="transpose-reversed"),
    case("Expand", normal(3, 1), ints(2, 3, 4)),
    case("Expand", X, ints(1, 1), name="expand-nothing"),
    case("Tile", X, ints(2, 1, 3)),
    case("Concat", X, normal(2, 1, 4), P, wanted=(0, 1, 2), axis=-2),
    case("Concat", X, axis=0, name="concat-one"),
    case("Split", X, ints(1, 2), outputs=2, axis=1),
    case("Split", X, outputs=2, axis=-1, opsets=OLD, name="split-even"),
    case("Split", X, outputs=2, axis=-1, num_outputs=2, opsets=NEW, name="split-number"),
    case("Slice", X, ints(1), ints(3), ints(-1)),
    case("Slice", X, ints(-2, 0), ints(9, -1), ints(2, 1), ints(1, 1), name="slice-two"),
    case("Slice", X, ints(3), ints(-9), ints(2), ints(-2), name="slice-backward"),
    case("Slice", X, ints(0, 1), ints(2, 3), name="slice-no-axes"),
    case("Slice", X, ints(2), ints(2), ints(-1), name="slice-empty"),
    case("Slice", X, np.int32([1]), np.int32([3]), np.int32([2]), name="slice-int32"),
    case("Gather", X, ints(1, 1, -1, 0), axis=1, opsets=(16, 20, 25)),
    case("Gather", X, np.int64(0), axis=1, opsets=(16, 20), name="gather-scalar"),
    case("GatherElements", X, np.zeros((2, 3, 2), np.int64) - 1, axis=2, opsets=(16, 20)),
    case("GatherND", X, np.array([[1, 2], [0, -1], [1, 2]]), opsets=(16, 20)),
    case("Pad", X, ints(1, 0, 2, 0, 1, 1), np.float64(3)),
    case(
        "Pad",
        X,
        ints(0, -1, 2, 1, 0, -1),
        oracle=lambda x: np.pad(x[:, 1:, :-1], ((0, 1), (0, 0), (2, 0))),
        name="pad-crop",
    ),
    case("Pad", X, ints(2, 1), "", ints(-1), opsets=NEW, name="pad-axes"),
    case("MatMul", X, normal(4, 5), wanted=BOTH),
    case("MatMul", normal(3, 4), normal(4, 5), wanted=BOTH, name="matmul-2d"),
    case("MatMul", X, normal(2, 4, 5), wanted=BOTH, name="matmul-batched"),
    case("MatMul", X, normal(2, 1, 4, 5), wanted=BOTH, name="matmul-broadcast"),
    case("MatMul", normal(3, 4), normal(2, 4, 5), wanted=BOTH, name="matmul-left-2d"),
    *(
        case(
            "Gemm",
            normal(*((4, 3) if a else (3, 4))),
            normal(*((5, 4) if b else (4, 5))),
            normal(5),
            wanted=(0, 1, 2),
            name=f"gemm-{a}{b}",
            transA=a,
            transB=b,
            alpha=0.5,
            beta=-2.0,
        )
        for a in (0, 1)
        for b in (0, 1)
    ),
    case("Einsum", X, normal(2, 5, 4), wanted=BOTH, equation="bik,bjk->bij"),
    case("Einsum", X, normal(4, 5), wanted=BOTH, equation="bik,kj->bji", name="einsum-weight"),
    case("Conv", normal(2, 3, 8, 8), normal(4, 3, 4, 4), strides=[4, 4], dtype=SINGLE),
    case(
        "Conv",
        normal(1, 4, 9, 7),
        normal(6, 2, 3, 2),
        normal(6),
        dtype=SINGLE,
        name="conv-general",
        strides=[2, 3],
        pads=[1, 0, 2, 1],
        group=2,
        dilations=[2, 1],
    ),
    # Expanded into their definitions.
    case("Mish", X, opsets=(18, 25), dtype=SINGLE),
    case("HardSwish", X, opsets=(20,), dtype=SINGLE),
    case("Celu", X, opsets=(20,), dtype=SINGLE),
]


def wrap(c, opset):
    """The model of a case: Identity of each wanted input, the operator, its outputs."""
    constants, nodes, inputs, names = [], [], [], []
    values = {}
    for i, value in enumerate(c.inputs):
        if isinstance(value, str):
            names.append("")
            continue
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(c.dtype)
        if i in c.wanted:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            dims = [f"x{i}_{axis}" for axis in range(array.ndim)]
            inputs.append(helper.make_tensor_value_info(f"x{i}", kind, dims))
            nodes.append(helper.make_node("Identity", [f"x{i}"], [f"y{i}"], name=f"y{i}"))
            values[f"x{i}"] = array
        else:
            constants.append(numpy_helper.from_array(array, f"y{i}"))
        names.append(f"y{i}")
    outputs = [f"out{i}" for i in range(c.outputs)]
    nodes.append(helper.make_node(c.op, names, outputs, name="tested", **c.attributes))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(c.dtype))
    graph = helper.make_graph(
        nodes,
        "rule",
        inputs,
        [
            onnx.ValueInfoProto(name=n, type=helper.make_tensor_type_proto(kind, None))
            for n in outputs
        ],
        constants,
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), values


def reference(c, opset):
    """The case's function in float64, from inputs by name to outputs, and its inputs."""
    model, feed = wrap(dataclasses.replace(c, dtype=DOUBLE), opset)
    if c.oracle is not None:
        return (lambda values: [c.oracle(values["x0"])]), feed
    evaluator = ReferenceEvaluator(model)
    return (lambda values: evaluator.run(None, values)), feed


def analytic(model, wanted, feed, weights):
    """Gradients by the transformation under test, in ONNX Runtime."""
    graph = differentiate(model, wanted)
    assert not graph.missing
    onnx.checker.check_model(graph.model)
    session = ort.InferenceSession(graph.model.SerializeToString(), quiet())
    seeds = {graph.seeds[name]: value for name, value in weights.items()}
    used = {value.name for value in session.get_inputs()}
    inputs = {name: value for name, value in (feed | seeds).items() if name in used}
    return dict(
        zip(graph.gradients, session.run(list(graph.gradients.values()), inputs), strict=True)
    )


def quiet():
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def slopes(function, feed, weights, generator):
    """Directional derivatives by central differences, and the directions, per wanted input."""

    def value(name, shift):
        results = function(feed | {name: feed[name] + shift})
        return sum(float((r * w).sum()) for r, w in zip(results, weights.values(), strict=True))

    for name in feed:
        for _ in range(2):
            direction = generator.standard_normal(feed[name].shape)
            rise = value(name, STEP * direction) - value(name, -STEP * direction)
            yield name, direction, rise / (2 * STEP)


def check(c, opset):
    generator = np.random.default_rng(7)
    model, feed = wrap(c, opset)
    function, exact = reference(c, opset)
    shapes = [np.shape(result) for result in function(exact)]
    weights = {f"out{i}": generator.standard_normal(shape) for i, shape in enumerate(shapes)}
    typed = {name: value.astype(c.dtype) for name, value in weights.items()}
    found = analytic(model, [f"y{i}" for i in c.wanted], feed, typed)
    tolerance = 1e-6 if c.dtype is DOUBLE else 2e-3
    for name, direction, slope in slopes(function, exact, weights, generator):
        gradient = found[name.replace("x", "y")]
        assert gradient.shape == direction.shape
        assert float((gradient * direction).sum()) == pytest.approx(
            slope, rel=tolerance, abs=tolerance
        )


@pytest.mark.parametrize(
    ("c", "opset"), [pytest.param(c, o, id=f"{c.name}-{o}") for c in CASES for o in c.opsets]
)
def test_rule(c, opset):
    check(c, opset)


def test_every_rule_has_a_case():
    """SimplifiedLayerNormalization is no operator of onnx: test_differentiate.py has it."""
    tested = {c.op for c in CASES}
    rules = {name for domain, name in RULES if not domain}
    assert rules - tested == {"SimplifiedLayerNormalization"}
    assert tested - rules == {"Mish", "HardSwish", "Celu"}


@pytest.mark.parametrize("op", sorted({c.op for c in CASES if ("", c.op) in RULES}))
def test_a_wrong_rule_is_seen(op, monkeypatch):
    """Planted fault: gradients that are wrong by one percent."""
    rule = RULES["", op]

    def wrong(step):
        factor = step.number(1.01)
        return {i: step.op("Mul", gradient, factor) for i, gradient in rule(step).items()}

    c = next(c for c in CASES if c.op == op)
    check(c, c.opsets[-1])
    monkeypatch.setitem(RULES, ("", op), wrong)
    with pytest.raises(AssertionError):
        check(c, c.opsets[-1])
