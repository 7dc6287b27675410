"""Reads what TensorRT-RTX writes of a compiled graph, as text, into the engine.

NVIDIA documents none of this; it was found in engines of TensorRT-RTX 1.7.1 (docs/precision.md),
and any other release may write something else. So nothing depends on where the text lies or how
its parts are framed, every statement is read alone, and what is not understood is left unknown.

A program begins with `header {`, lists its tensors with their types, then its operations:

    sub_tensor={ base="h.1" name="h^deref" … type=fp8_e4m3 }
    tensor={ … name="w_dconst" … type=fp8_e4m3 }
    fully_connected={ name="fc1/MatMul" output={"y" } input={"h^deref" "w_dconst" "alpha" "beta" } …
      layers="[ONNX Layer: fc1/MatMul]…[ONNX Layer: fc1/x/DequantizeLinear]" }

`fully_connected` is a MatMul or Gemm: its first two inputs are the operands, a fifth and sixth are
their block scales. `corrltn` is a convolution, `custom_layer` a plugin. `function` is a kernel that
was generated for several nodes; `runtime_fusion` calls a program of its own, further on in the
file, whose inputs are the call's arguments in the same order. A model has one program per
optimization profile.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mmcompile.backends.engines.layer_precision import (
    UNKNOWN,
    Kind,
    LayerPrecision,
    product_precision,
)

EngineBytes = bytes | bytearray | memoryview | mmap.mmap
MAX_TEXT = 1 << 28
"""Bytes of text that are read at most. MiniLM's MXFP8 engine, the wordiest, has 16 kB a linear."""
MAX_PROGRAMS = 100_000
TYPES = {
    "float": "FP32",
    "half": "FP16",
    "bf16": "BF16",
    "fp8_e4m3": "FP8",
    "fp8_e8m0": "E8M0",
    "fp4_e2m1": "FP4",
    "int8": "INT8",
    "int4": "INT4",
}
"""Types of operands, as plans spell them; others are unknown."""
_NARROW = {"FP8", "FP4", "INT8", "INT4"}
_FLOATS = {"FP32", "FP16", "BF16"}
_PRODUCTS: dict[str, Kind] = {"fully_connected": "gemm", "corrltn": "convolution"}
_CALLS = ("function", "runtime_fusion")
_OPERATIONS = {*_PRODUCTS, *_CALLS, "custom_layer", "cast", "mul", "copy"}
_MOVES = {"cast", "mul", "copy"}
_MOVING = {"Cast", "Mul", "Move", "Resh", "Repl", "Tran", "Conc", "Slic"}
"""Parts of a generated kernel's name that dequantize and rearrange; every other may compute."""
_GENERATED = "__myl_"
"""What the names of generated kernels begin with."""
_STEPS = 16
"""Operations that are followed back from an operand at most."""

_START = re.compile(rb"header \{\n")
_TEXT = re.compile(rb"[^\x00-\x08\x0b\x0c\x0e-\x1d\x7f]*+")
_QUOTED = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rf'(?:[^{{}}"]++|{_QUOTED})*+'
_NESTED = rf'(?:[^{{}}"]++|{_QUOTED}|\{{{_FLAT}\}})*+'
_STATEMENT = re.compile(
    rf'(?<!\w)(\w++)=\{{((?:[^{{}}"]++|{_QUOTED}|\{{{_NESTED}\}})*+)\}}', re.DOTALL
)
_ATTRIBUTE = re.compile(
    rf"(\w++)\s*+=\s*+({_QUOTED}|\{{{_NESTED}\}}|[^\s{{}}\"]++)|{_QUOTED}", re.DOTALL
)
_STRING = re.compile(_QUOTED, re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_LAYER = re.compile(r"\]\s*\[ONNX Layer: ")
_PIECE = re.compile(r"[A-Z][a-z]*")
_PROFILE = re.compile(r" \[profile \d+\]$")


@dataclass(frozen=True)
class PlanText:
    """What the text of an engine says.

    Attributes:
        programs: number of programs read; 0 where there is no such text.
        layers: the products.
        plugins: the plugin layers: the id that the engine knows each by, and its product.
        generated: generated kernels by the ONNX nodes that they name; the product of a node may
            be in one where no other product names the node.
        complete: whether all of it was read.
    """

    programs: int
    layers: tuple[LayerPrecision, ...]
    plugins: Mapping[str, LayerPrecision]
    generated: Mapping[str, LayerPrecision]
    complete: bool


def read_plan_text(engine: EngineBytes) -> PlanText:
    """Reads the text of a serialized engine; any bytes give an answer.

    Args:
        engine: contiguous bytes; a mapped file is read once, from begin to end.
    """
    layers: dict[LayerPrecision, None] = {}
    plugins: dict[str, LayerPrecision] = {}
    generated: dict[str, LayerPrecision] = {}
    calls: dict[str, tuple[_Program, _Operation]] = {}
    count, length = 0, 0
    for text in _texts(engine):
        count, length = count + 1, length + len(text)
        program = _parse(text.decode("utf-8", "replace"))
        for operation in program.operations:
            if operation.kind == "custom_layer":
                product = _plugin(program, operation)
                plugins.setdefault(operation.values.get("tactic_id", product.name), product)
            elif operation.kind in _PRODUCTS:
                caller = next((calls[n] for n in operation.nodes if n in calls), None)
                layers.setdefault(_product(program, operation, caller))
            elif operation.kind == "runtime_fusion":
                calls.update(dict.fromkeys(operation.nodes, (program, operation)))
            elif operation.kind == "function" and operation.is_attention:
                layers.setdefault(_attention(program, operation))
            elif operation.kind == "function":
                kernel = _kernel(program, operation, "generated")
                generated.update(dict.fromkeys(operation.nodes, kernel))
    complete = count < MAX_PROGRAMS and length < MAX_TEXT
    return PlanText(count, tuple(layers), plugins, generated, complete)


def _texts(engine: EngineBytes) -> Iterator[bytes]:
    """The programs' texts, each from its header to the first byte that is no text."""
    view = memoryview(engine).cast("B")
    position, left = 0, MAX_TEXT
    for _ in range(MAX_PROGRAMS):
        start = _START.search(view, position)
        if start is None or left <= 0:
            return
        found = _TEXT.match(view, start.start(), start.start() + left)
        assert found is not None  # it may be empty, but it matches
        position = found.end()
        left -= position - start.start()
        yield found.group()


@dataclass(frozen=True)
class _Operation:
    """A statement of a program that may hold a product or feed one."""

    kind: str
    body: str = field(repr=False)

    @cached_property
    def values(self) -> dict[str, str]:
        """Its attributes; strings and lists without their delimiters."""
        found = (match for match in _ATTRIBUTE.finditer(self.body) if match[1])
        return {m[1]: m[2][1:-1] if m[2][0] in '"{' else m[2] for m in found}

    @property
    def name(self) -> str:
        """Its name, the same in all optimization profiles."""
        return _PROFILE.sub("", self.values.get("name", ""))

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The ONNX nodes that it names, in order."""
        text = _ESCAPE.sub(r"\1", self.values.get("layers", ""))
        text = text.strip().removeprefix("[ONNX Layer: ").removesuffix("]")
        return tuple(dict.fromkeys(filter(None, _LAYER.split(text))))

    def names(self, *keys: str) -> list[str]:
        """The tensors that the first of the attributes lists that it has."""
        listed = next((self.values[key] for key in keys if key in self.values), "")
        return [name[1:-1] for name in _STRING.findall(listed)]

    @property
    def inputs(self) -> list[str]:
        return self.names("input", "input_args")

    @property
    def is_attention(self) -> bool:
        """Whether a kernel is one of TensorRT's own for attention, such as `_gemm_mha_v2`."""
        return "mha" in self.name and not self.name.startswith(_GENERATED)

    @property
    def moves_only(self) -> bool:
        """Whether it changes the type and the order of values at most, and their scale."""
        if self.kind in _CALLS:
            pieces = _PIECE.findall(self.name.removeprefix(_GENERATED))
            return bool(pieces) and _MOVING.issuperset(pieces)
        return self.kind in _MOVES


@dataclass(frozen=True)
class _Program:
    """A program: types and parts of its tensors, its operations, the places of its inputs."""

    types: Mapping[str, str]
    bases: Mapping[str, str]
    operations: tuple[_Operation, ...]
    inputs: Mapping[str, int]

    @cached_property
    def makers(self) -> dict[str, _Operation]:
        """The operation that makes each tensor."""
        return {
            name: operation
            for operation in self.operations
            for name in operation.names("output", "output_args")
        }

    def type_of(self, tensor: str) -> str:
        return self.types.get(tensor, UNKNOWN)


def _parse(text: str) -> _Program:
    types: dict[str, str] = {}
    bases: dict[str, str] = {}
    operations: list[_Operation] = []
    inputs: dict[str, int] = {}
    for match in _STATEMENT.finditer(text):
        kind, body = match.groups()
        if kind in ("tensor", "sub_tensor"):
            values = _Operation(kind, body).values
            name = values.get("name", "")
            kept = types.setdefault(name, TYPES.get(values.get("type", ""), UNKNOWN))
            if kept != TYPES.get(values.get("type", ""), UNKNOWN):
                types[name] = UNKNOWN  # two tensors of one name: neither is to be trusted
            if "base" in values:
                bases[name] = values["base"]
        elif kind in _OPERATIONS:
            operations.append(_Operation(kind, body))
        elif kind == "inputs" and not inputs:
            inputs = {name[1:-1]: place for place, name in enumerate(_STRING.findall(body))}
    return _Program(types, bases, tuple(operations), inputs)


def _product(
    program: _Program, operation: _Operation, caller: tuple[_Program, _Operation] | None
) -> LayerPrecision:
    """A MatMul, Gemm or convolution."""
    x, weight, *others = [*operation.inputs, "", ""]
    types = (program.type_of(x), program.type_of(weight))
    extra = [program.type_of(name) for name in others if name]
    narrow = dict.fromkeys(name for name in extra if name not in _FLOATS)
    scales = "" if not narrow else next(iter(narrow)) if len(narrow) == 1 else UNKNOWN
    return LayerPrecision(
        name=operation.name,
        nodes=operation.nodes,
        kind=_PRODUCTS[operation.kind],
        x=types[0],
        weight=types[1],
        output=_output(program, operation),
        precision=product_precision(*types, scales),
        x_from=_narrow_source(program, x, caller),
        weight_from=_narrow_source(program, weight, caller),
    )


def _narrow_source(
    program: _Program, tensor: str, caller: tuple[_Program, _Operation] | None
) -> str:
    """The narrow type that a wide operand was made of by nothing but moving and scaling."""
    if program.type_of(tensor) not in _FLOATS:
        return ""
    pending = [(program, tensor)]
    for _ in range(_STEPS):
        if not pending:
            break
        where, name = pending.pop(0)
        name = where.bases.get(name, name)
        if caller is not None and where is program and name in program.inputs:
            arguments = caller[1].inputs
            if len(arguments) != len(program.inputs):
                continue
            where, name = caller[0], arguments[program.inputs[name]]
            name = where.bases.get(name, name)
        maker = where.makers.get(name)
        if maker is None or not maker.moves_only:
            continue
        types = {source: where.type_of(source) for source in maker.inputs}
        narrow = [kind for kind in types.values() if kind in _NARROW]
        if narrow:
            return narrow[0]
        pending += [(where, source) for source, kind in types.items() if kind in _FLOATS]
    return ""


def _plugin(program: _Program, operation: _Operation) -> LayerPrecision:
    return LayerPrecision(
        name=operation.name,
        nodes=operation.nodes,
        kind="plugin",
        x=next((program.type_of(name) for name in operation.inputs), UNKNOWN),
        output=_output(program, operation),
        precision="plugin",
    )


def _attention(program: _Program, operation: _Operation) -> LayerPrecision:
    """Two products and a softmax in one kernel; of one type where all that it reads is."""
    kernel = _kernel(program, operation, "attention")
    operands = {kind for kind in map(program.type_of, operation.inputs) if kind in TYPES.values()}
    if len(operands) != 1:
        return kernel
    (one,) = operands
    return LayerPrecision(
        kernel.name, kernel.nodes, "attention", one, one, kernel.output, precision=one
    )


def _kernel(program: _Program, operation: _Operation, kind: Kind) -> LayerPrecision:
    output = _output(program, operation)
    return LayerPrecision(operation.name, operation.nodes, kind, output=output)


def _output(program: _Program, operation: _Operation) -> str:
    names = operation.names("output", "output_args")
    return next((program.type_of(name) for name in names), UNKNOWN)
