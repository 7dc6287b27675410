"""Opens calibration inputs: one type for every kind of source, read lazily and as often as needed.

`open_data` recognises the source, `hold_back` parts the inputs that verification uses from those
that calibration sees. Whatever the source, iterating yields samples of batch 1 (or of the model's
fixed batch) that fit the model's inputs in name, type and shape.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcompile.data.arrays import SUFFIXES, count_arrays, read_arrays
from mmcompile.data.options import DataOptions, Feed, Source
from mmcompile.data.padding import trim_padding
from mmcompile.data.sample import (
    AnyArray,
    InputSpec,
    Sample,
    check_specs,
    cut_feed,
    is_batch,
    number_kind,
)
from mmcompile.data.text import describe_text, plan_text, read_text
from mmcompile.errors import UsageError

__all__ = ["CalibrationData", "InputSpec", "Sample", "hold_back", "open_data", "trim_padding"]

RANDOM = "random"
RANDOM_SAMPLES = 16
RANDOM_LENGTH = 128
DEFAULT_FUNCTION = "load_data"
"""The function of a data loader script, as polygraphy names it."""

_KINDS = (
    "give .npz, .npy, polygraphy's .json, a folder of these, a script.py[:function], "
    "a text file with a tokenizer, or 'random'"
)


@dataclass(frozen=True)
class CalibrationData:
    """Samples that can be iterated any number of times; each pass reads the source anew.

    Attributes:
        description: what the data is, for plans and reports.
        fit: False for random numbers, which say nothing about real activations.
        count: number of samples where it is known without reading them, else None.
        read: starts a pass.
    """

    description: str
    fit: bool
    count: int | None
    read: Callable[[], Iterator[Sample]]

    def __iter__(self) -> Iterator[Sample]:
        """Yields the samples.

        Raises:
            UsageError: the source cannot be read or does not fit the model.
        """
        return self.read()

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all samples, as hex.

        Equal data has equal digests, whatever kind of source it comes from.
        """
        content = hashlib.sha256()
        for sample in self:
            for name, array in sorted(sample.items()):
                content.update(f"{name!r} {array.dtype} {array.shape}\n".encode())
                content.update(array.tobytes())
        return content.hexdigest()


def open_data(
    source: Source,
    inputs: Sequence[InputSpec],
    options: DataOptions = DataOptions(),
    *,
    max_id: int = 100,
) -> CalibrationData:
    """Opens calibration data and reads its first sample, so that errors show at once.

    Args:
        source: a .npz, .npy or polygraphy .json file, a folder of such files, a data loader
            script (`script.py` or `script.py:function`), a UTF-8 text file, the word "random",
            or from Python a feed, an iterable of feeds, or a function that returns one.
        inputs: the model's inputs.
        options: how text is cut, the seed, and how many samples are read at most. `max_length`
            also gives the dynamic dimensions of random inputs, up to `RANDOM_LENGTH`.
        max_id: random integers are below this.

    Raises:
        UsageError: the source is missing, of no known kind, empty, or does not fit the model.
        EnvironmentProblem: text is given and the package `tokenizers` is missing.
    """
    check_specs(inputs)
    limit = options.samples
    for name, number in (
        ("--samples", limit),
        ("--max-length", options.max_length),
        ("max_id", max_id),
    ):
        if number is not None and number < 1:
            reason = f"{number} is below 1"
            raise UsageError("calibration-option", name, reason, "give a positive number")
    specs = tuple(inputs)
    rounded: set[str] = set()
    if isinstance(source, str) and source == RANDOM:
        data = _open_random(specs, options, max_id)
    elif not isinstance(source, str | Path):
        data = _open_feeds(source, specs, rounded)
    elif script := re.fullmatch(r"(.+\.py)(?::(.*))?", str(source)):
        data = _open_script(Path(script[1]), script[2] or DEFAULT_FUNCTION, specs, rounded)
    else:
        data = _open_path(Path(source), specs, options, rounded)
    data = _limited(data, limit)
    next(iter(data))
    return dataclasses.replace(data, description=", ".join([data.description, *sorted(rounded)]))


def hold_back(data: CalibrationData, every: int) -> tuple[CalibrationData, CalibrationData | None]:
    """Parts data into what calibration sees and what is held back for verification.

    Sample i is held back where i mod `every` = `every` − 1, so both parts are spread over the
    data and the same in every run.

    Args:
        data: the samples.
        every: one sample in so many is held back; at least 2.

    Returns:
        The calibration part, and the held-back part or None where there are fewer than `every`
        samples.

    Raises:
        UsageError: `every` is below 2, or the data cannot be read.
    """
    if every < 2:
        reason = f"holding back one sample in {every} leaves none to calibrate with"
        raise UsageError("calibration-option", "hold back", reason, "give 2 or more")
    if sum(1 for _ in itertools.islice(data, every)) < every:
        return data, None
    held_count = None if data.count is None else data.count // every

    def part(held: bool) -> Iterator[Sample]:
        for index, sample in enumerate(data):
            if (index % every == every - 1) == held:
                yield sample

    seen_count = None if data.count is None or held_count is None else data.count - held_count
    seen = f"{data.description}, {every - 1} of every {every}"
    held = f"{data.description}, 1 of every {every}"
    return (
        CalibrationData(seen, data.fit, seen_count, functools.partial(part, False)),
        CalibrationData(held, data.fit, held_count, functools.partial(part, True)),
    )


def _limited(data: CalibrationData, limit: int | None) -> CalibrationData:
    """The first samples of the data; none at all is an error at the end of a pass."""

    def read() -> Iterator[Sample]:
        count = 0
        for sample in itertools.islice(data, limit):
            count += 1
            yield sample
        if count == 0:
            remedy = "give at least one sample"
            raise UsageError("calibration-empty", data.description, "it has no samples", remedy)

    description = data.description
    if data.count is not None:
        description = f"{data.count} samples of {description}"
    elif limit is not None:
        description = f"at most {limit} samples of {description}"
    return CalibrationData(description, data.fit, data.count, read)


def _open_path(
    path: Path, specs: tuple[InputSpec, ...], options: DataOptions, rounded: set[str]
) -> CalibrationData:
    """Data from a file or folder."""
    if not path.exists():
        raise UsageError("calibration-missing", path, "there is no such file or folder", _KINDS)
    if path.is_dir() or path.suffix in SUFFIXES:
        count = count_arrays(path, specs, options.samples)
        read = functools.partial(read_arrays, path, specs, rounded)
        return CalibrationData(path.name, True, count, read)
    if options.tokenizer is None:
        reason = "it is no file of arrays, and to read it as text a tokenizer is needed"
        raise UsageError("tokenizer-missing", path, reason, f"{_KINDS}; name a tokenizer.json")
    shape = plan_text(specs, options.max_length, options.chunk)
    description = f"{path.name} ({describe_text(path, shape)})"
    read = functools.partial(read_text, path, specs, options.tokenizer, shape)
    return CalibrationData(description, True, None, read)


def _open_feeds(source: object, specs: tuple[InputSpec, ...], rounded: set[str]) -> CalibrationData:
    """Data from Python objects."""
    description = "data given in Python"
    if isinstance(source, Mapping):
        return _from_function(lambda: [source], specs, description, rounded)
    if callable(source):
        return _from_function(source, specs, description, rounded)
    if not isinstance(source, Iterable):
        reason = f"a {type(source).__name__} cannot be iterated"
        raise UsageError("calibration-source", description, reason, _KINDS)
    if isinstance(source, Iterator):
        reason = "an iterator yields its samples only once, calibration reads them several times"
        remedy = "give a list, or the function that makes the iterator"
        raise UsageError("calibration-source", description, reason, remedy)
    return _from_function(lambda: source, specs, description, rounded)


def _from_function(
    function: Callable[[], Iterable[Feed]],
    specs: tuple[InputSpec, ...],
    where: str,
    rounded: set[str],
) -> CalibrationData:
    """Data from a function that is called for every pass and returns feeds."""

    def read() -> Iterator[Sample]:
        for index, feed in enumerate(_guarded(function, where)):
            yield from cut_feed(feed, specs, f"{where}, item {index}", rounded)

    return CalibrationData(where, True, None, read)


def _guarded(function: Callable[[], Iterable[Feed]], where: str) -> Iterator[Feed]:
    """The feeds of a function; whatever goes wrong in the user's code is the user's to see."""
    try:
        yield from function()
    except Exception as error:
        reason = f"it raised {type(error).__name__}: {error}"
        remedy = "correct it; it must yield dicts of arrays by input name"
        raise UsageError("calibration-script", where, reason, remedy) from error


def _open_script(
    path: Path, function: str, specs: tuple[InputSpec, ...], rounded: set[str]
) -> CalibrationData:
    """Data from a data loader script of polygraphy (`--data-loader-script`)."""
    from polygraphy import mod
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    where = f"{path}:{function}"
    remedy = "give a script that defines a function without arguments which yields dicts of arrays"
    if not path.is_file():
        raise UsageError("calibration-missing", path, "there is no such file", _KINDS)
    if path.stem in sys.modules:
        # Importing by that name would give the loaded module instead of the script.
        reason = f"a module named '{path.stem}' is already loaded"
        raise UsageError("calibration-script", path, reason, "rename the script")
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            load = mod.import_from_script(str(path.resolve()), function)
    except (Exception, SystemExit) as error:
        # polygraphy's own errors hide the script's, which is the context of one of them.
        cause: BaseException = error
        while cause.__context__ is not None:
            found = isinstance(cause, PolygraphyException)
            cause = cause.__context__
            if found:
                break
        reason = f"it cannot be imported: {type(cause).__name__}: {cause}"
        raise UsageError("calibration-script", where, reason, remedy) from error
    if not callable(load):
        reason = f"'{function}' is no function"
        raise UsageError("calibration-script", where, reason, remedy)
    data = _from_function(load, specs, where, rounded)
    return CalibrationData(f"{path.name}:{function}", True, None, data.read)


def _open_random(
    specs: tuple[InputSpec, ...], options: DataOptions, max_id: int
) -> CalibrationData:
    """Random inputs, for trying out a model: dynamic batch 1, other dynamic sizes alike."""
    count = options.samples or RANDOM_SAMPLES
    length = min(options.max_length, RANDOM_LENGTH)
    shapes = {
        spec.name: tuple(
            dim if isinstance(dim, int) else 1 if is_batch(axis, spec, specs) else length
            for axis, dim in enumerate(spec.shape)
        )
        for spec in specs
    }

    def read() -> Iterator[Sample]:
        for index in range(count):
            generator = np.random.default_rng([options.seed, index])
            yield {
                spec.name: _random_input(spec, shapes[spec.name], generator, max_id)
                for spec in specs
            }

    return CalibrationData("random numbers, unfit for calibration", False, count, read)


def _random_input(
    spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator, max_id: int
) -> AnyArray:
    """One input: ids below `max_id`, standard normal floats; what is no id as models need it."""
    if "attention_mask" in spec.name or spec.dtype.kind == "b":
        return np.ones(shape, spec.dtype)
    if spec.name.endswith("token_type_ids"):
        return np.zeros(shape, spec.dtype)
    if spec.name.endswith("position_ids"):
        positions = np.arange(shape[-1] if shape else 1).astype(spec.dtype)
        return np.broadcast_to(positions, shape).copy()
    if number_kind(spec.dtype) == "integer":
        high = min(max_id, int(np.iinfo(spec.dtype).max))
        return generator.integers(0, high, shape).astype(spec.dtype)
    return generator.standard_normal(shape, np.float32).astype(spec.dtype)
