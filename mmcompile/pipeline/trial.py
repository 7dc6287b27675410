"""Trial models: a plan packed into a temporary folder and run beside the original.

The original runs once per set of inputs; its outputs wait on disk. Every trial packs one group at
a time, opens one session for all sets of inputs and keeps sums only, so that memory stays bounded
by the largest group and what ONNX Runtime needs for one model.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mmcompile.data.dataset import Sample
from mmcompile.model.passes.pending import Pending, write_weights
from mmcompile.model.passes.rewrite_linears import packed_names, rewrite_linears
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import load_model
from mmcompile.model.writer import ModelWriter
from mmcompile.output import disk_errors
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.weights import InputsOf, no_inputs
from mmcompile.plan import GroupPlan
from mmcompile.progress import Progress, Silent
from mmcompile.verification.metrics import Agreement
from mmcompile.verification.outputs import Outputs, run_marked
from mmcompile.verification.runnable import runnable
from mmcompile.weights.pack import pack_group

Decided = Sequence[tuple[SiteGroup, GroupPlan]]
"""Groups of the model with their plans, in graph order; all others stay in full precision."""


@dataclass(frozen=True)
class Reference:
    """Inputs, and the file per sample that holds the original's outputs."""

    samples: tuple[Sample, ...]
    files: tuple[Path, ...]


class TrialBench:
    """Context manager for trials of one model; its temporary folder goes with it.

    Args:
        prepared: the model.
        logits: names of the outputs that are logits.
        inputs_of: sampled inputs for error feedback, unless a trial has others.
    """

    def __init__(
        self,
        prepared: Prepared,
        logits: frozenset[str] = frozenset(),
        inputs_of: InputsOf = no_inputs,
    ) -> None:
        self._prepared = prepared
        self._logits = logits
        self._inputs_of = inputs_of
        self._outputs = [value.name for value in prepared.source.proto.graph.output]
        self._exit = contextlib.ExitStack()
        self._folder = Path()
        self._count = itertools.count()

    def __enter__(self) -> Self:
        """Makes the temporary folder."""
        folder = tempfile.TemporaryDirectory(prefix="mmcompile-")
        self._folder = Path(self._exit.enter_context(folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the temporary folder."""
        self._exit.close()

    def reference(self, samples: Sequence[Sample], progress: Progress) -> Reference:
        """Runs the original.

        Args:
            samples: the inputs.
            progress: told after every sample.

        Raises:
            UsageError: ONNX Runtime rejects a sample.
            UnsupportedModelError: ONNX Runtime does not accept the model.
            EnvironmentProblem: the temporary folder's disk is full.
        """
        files = []
        for outputs in run_marked(self._prepared.runnable_source, self._outputs, samples, progress):
            path = self._folder / f"reference-{next(self._count)}.npz"
            named = dict(zip(map(str, itertools.count()), outputs.values(), strict=False))
            with disk_errors(path):
                np.savez(path, **named)  # type: ignore[arg-type]
            files.append(path)
        return Reference(tuple(samples), tuple(files))

    def agreements(
        self,
        decided: Decided,
        references: Sequence[Reference],
        inputs_of: InputsOf | None = None,
    ) -> list[dict[str, Agreement]]:
        """Packs a trial model and runs it; agreement by output, per set of inputs.

        Args:
            decided: what is compiled.
            references: sets of inputs.
            inputs_of: sampled inputs for error feedback; None takes those of the bench.

        Raises:
            UnsupportedModelError: a weight cannot be packed.
            EnvironmentProblem: the temporary folder's disk is full.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            sampled = self._inputs_of if inputs_of is None else inputs_of
            path = write_trial(self._prepared, decided, Path(folder), sampled)
            compiled = runnable(load_model(path), rounded=False)
            samples = itertools.chain.from_iterable(r.samples for r in references)
            found = run_marked(compiled, self._outputs, samples, Silent())
            results = [
                self._compare(reference, itertools.islice(found, len(reference.samples)))
                for reference in references
            ]
            # Exhausted, the runner lets go of the session before the folder does.
            assert next(found, None) is None
            return results

    def _compare(self, reference: Reference, found: Iterator[Outputs]) -> dict[str, Agreement]:
        agreements = {name: Agreement() for name in self._outputs}
        for path, outputs in zip(reference.files, found, strict=True):
            with np.load(path, allow_pickle=False) as expected:
                for index, name in enumerate(self._outputs):
                    logits = name in self._logits
                    agreements[name].add(expected[str(index)], outputs[name], logits=logits)
        return agreements


def worst_error(agreements: Mapping[str, Agreement]) -> float:
    """1 − mean cosine similarity of the worst output; infinite where one cannot be compared."""
    if any(agreement.mismatch for agreement in agreements.values()):
        return math.inf
    cosines = [agreement.cosine_mean for agreement in agreements.values()]
    return max((1 - c for c in cosines if not math.isnan(c)), default=0.0)


def write_trial(
    prepared: Prepared, decided: Decided, folder: Path, inputs_of: InputsOf = no_inputs
) -> Path:
    """Packs the decided groups and writes the model; its file."""
    rewritten = rewrite_linears(prepared.source.proto, decided)
    with ModelWriter(folder) as writer:
        for sites, group in decided:
            packed = pack_group(sites, group, prepared.source, inputs_of(sites))
            for name, array in zip(packed_names(group.name), packed.constants(), strict=True):
                writer.add(name, array)
        write_weights(writer, rewritten, prepared.source, Pending())
        return writer.finish(rewritten)
