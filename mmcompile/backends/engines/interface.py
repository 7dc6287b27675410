"""A model's inputs and outputs, and the check that a result can take the original's place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

import msgspec

from mmcompile.errors import VerificationError

if TYPE_CHECKING:
    import onnx

Dimension = int | str | None


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output.

    Attributes:
        name: its name.
        dtype: numpy's name of its type, e.g. `float16`.
        shape: sizes; a name for a symbolic dimension, None for another dynamic one. None as a
            whole where the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        """In words, e.g. `logits float32[batch, 128, ?]`."""
        if self.shape is None:
            return f"{self.name} {self.dtype}"
        sizes = ("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype}[{', '.join(sizes)}]"


class Interface(msgspec.Struct, frozen=True):
    """Inputs and outputs, in the order in which the model declares them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether any input has a dynamic dimension."""
        return any(not isinstance(size, int) for spec in self.inputs for size in spec.shape or ())


def model_interface(proto: onnx.ModelProto) -> Interface:
    """The interface of an ONNX model; initializers that are also declared as inputs are none."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    return Interface(tuple(map(_spec, inputs)), tuple(map(_spec, proto.graph.output)))


def check_model(original: Interface, compiled: Interface, where: object) -> None:
    """Proves that a compiled ONNX model declares what the original declares, in its order.

    Raises:
        VerificationError: with the first difference.
    """
    for kind, before, after in (
        ("input", original.inputs, compiled.inputs),
        ("output", original.outputs, compiled.outputs),
    ):
        if before != after:
            _refuse(where, kind, before, after)


def check_engine(
    model: Interface, engine: Interface, where: object, *, ordered: bool = False
) -> None:
    """Proves that an engine or a parsed network can take the model's place.

    Names and types must be equal, fixed sizes too. A dynamic size of an input must stay dynamic;
    one of an output may be known to TensorRT better than to the model.

    Args:
        model: the ONNX model's interface.
        engine: the engine's or network's.
        where: the place for the error.
        ordered: demand the order, too; engines are addressed by name and keep none by contract.

    Raises:
        VerificationError: with the first difference.
    """
    for kind, before, after in (
        ("input", model.inputs, engine.inputs),
        ("output", model.outputs, engine.outputs),
    ):
        names = [spec.name for spec in before], [spec.name for spec in after]
        same = names[0] == names[1] if ordered else sorted(names[0]) == sorted(names[1])
        found = {spec.name: spec for spec in after}
        if not same or not all(_fits(spec, found[spec.name], kind) for spec in before):
            _refuse(where, kind, before, after)


def _fits(model: TensorSpec, engine: TensorSpec, kind: str) -> bool:
    if model.dtype != engine.dtype:
        return False
    if model.shape is None or engine.shape is None:
        return True
    if len(model.shape) != len(engine.shape):
        return False
    for declared, built in zip(model.shape, engine.shape, strict=True):
        if isinstance(declared, int):
            if built != declared:
                return False
        elif kind == "input" and isinstance(built, int):
            return False
    return True


def _refuse(
    where: object, kind: str, before: Sequence[TensorSpec], after: Sequence[TensorSpec]
) -> NoReturn:
    raise VerificationError(
        "not-drop-in",
        where,
        f"its {kind}s are {_words(after)}; those of the original are {_words(before)}",
        "please report this: the result would not fit where the original runs",
    )


def _words(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "none"


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    dtype = "untyped"
    if tensor.elem_type:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    return TensorSpec(
        value.name,
        dtype,
        tuple(
            int(size.dim_value) if size.HasField("dim_value") else (size.dim_param or None)
            for size in tensor.shape.dim
        ),
    )
