"""Loading of a model from a local Hugging Face folder, as `save_pretrained` writes it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompile.errors import MMCompileError, UnsupportedModelError, UsageError
from mmcompile.exporting.options import Dtype
from mmcompile.exporting.source import DTYPES, ModelSource, one_line, quiet, require

if TYPE_CHECKING:
    import torch

_SCRIPT = "wrap the part to compile in a factory: path/to/script.py:factory"


@dataclass(frozen=True)
class Task:
    """How a task is loaded and what it returns.

    Attributes:
        auto_class: the class of transformers that loads it.
        mapping: name of transformers' table from model types to this task's architectures.
        outputs: the fields of the model's result that are exported.
    """

    auto_class: str
    mapping: str
    outputs: tuple[str, ...]


TASKS: dict[str, Task] = {
    "feature-extraction": Task("AutoModel", "MODEL_MAPPING_NAMES", ("last_hidden_state",)),
    "text-generation": Task(
        "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", ("logits",)
    ),
    "fill-mask": Task("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", ("logits",)),
    "text-classification": Task(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        ("logits",),
    ),
    "token-classification": Task(
        "AutoModelForTokenClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        ("logits",),
    ),
    "question-answering": Task(
        "AutoModelForQuestionAnswering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        ("start_logits", "end_logits"),
    ),
}
"""The tasks by the names that Hugging Face gives them."""


def load_hugging_face(
    folder: Path, dtype: Dtype, task: str | None, sequence_length: int
) -> ModelSource:
    """Loads a model and makes example inputs for it.

    Args:
        folder: holds `config.json` and `*.safetensors`.
        dtype: floating-point type to load the weights as.
        task: one of `TASKS`, or None for the task of the architecture in `config.json`.
        sequence_length: tokens of the example, at least 2.

    Raises:
        UsageError: the folder, the task or the length is not usable.
        UnsupportedModelError: transformers cannot load the model, weights are missing, or it is
            no encoder or decoder of text.
        EnvironmentProblem: PyTorch or transformers is missing.
    """
    if sequence_length < 2:
        # PyTorch takes a dimension of 0 or 1 for a constant.
        reason = f"an example of {sequence_length} tokens cannot show that the length varies"
        raise UsageError("export-sequence", "sequence_length", reason, "use 2 or more tokens")
    if task is not None and task not in TASKS:
        remedy = f"choose one of {', '.join(TASKS)}"
        raise UsageError("export-task", "--task", f"unknown task '{task}'", remedy)
    if not (folder / "config.json").is_file():
        reason = "the folder has no config.json" if folder.is_dir() else "there is no such folder"
        remedy = "give a local Hugging Face folder, or path/to/script.py:factory"
        raise UsageError("export-source", folder, reason, remedy)
    if not any(folder.glob("*.safetensors")):
        remedy = "save the model again with save_pretrained, which writes safetensors"
        raise UsageError("export-weights", folder, "the folder has no *.safetensors", remedy)
    torch, transformers = require("torch"), require("transformers")
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            chosen = TASKS[task] if task else _task_of(folder, config)
            model, info = getattr(transformers, chosen.auto_class).from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=getattr(torch, DTYPES[dtype]),
                # Exports as MatMul, Softmax, MatMul, which runtimes know how to fuse.
                attn_implementation="eager",
                output_loading_info=True,
            )
        except MMCompileError:
            raise
        except Exception as error:
            remedy = "check that the installed transformers supports this model"
            raise UnsupportedModelError("export-load", folder, one_line(error), remedy) from error
    # A pooler is often absent, and no exported output of an encoder reads it.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        reason = f"{len(missing)} weights are not in the files, the first is {missing[0]}"
        remedy = "choose the task that the weights were saved for, or complete the files"
        raise UnsupportedModelError("export-weights", folder, reason, remedy)
    return _source(folder, model, chosen, sequence_length)


def _task_of(folder: Path, config: Any) -> Task:
    """The task whose class `config.json` names."""
    mappings = require("transformers.models.auto.modeling_auto")
    for architecture in config.architectures or ():
        for task in TASKS.values():
            known = getattr(mappings, task.mapping).get(config.model_type, ())
            if architecture in ((known,) if isinstance(known, str) else known):
                return task
    reason = f"no known task belongs to the architecture {config.architectures}"
    remedy = f"name the task with --task: {', '.join(TASKS)}"
    raise UsageError("export-task", folder, reason, remedy)


def _source(folder: Path, model: Any, task: Task, sequence_length: int) -> ModelSource:
    """Wraps a model so that it takes tensors by name and returns plain tensors."""
    import torch

    config = model.config
    parameters = inspect.signature(model.forward).parameters
    if getattr(config, "is_encoder_decoder", False) or "input_ids" not in parameters:
        reason = f"{type(model).__name__} is neither an encoder nor a decoder of text"
        raise UnsupportedModelError("export-architecture", folder, reason, _SCRIPT)
    config.use_cache = False

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor | None = None,
        ) -> tuple[torch.Tensor, ...]:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            if token_type_ids is not None:
                inputs["token_type_ids"] = token_type_ids
            result = self.model(**inputs, return_dict=True)
            return tuple(result[name] for name in task.outputs)

    length = min(sequence_length, getattr(config, "max_position_embeddings", sequence_length))
    input_ids = torch.arange(2 * length).reshape(2, length) % config.vocab_size
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length // 2 :] = 0
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "token_type_ids" in parameters and getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(input_ids)
    dynamic = {name: {0: "batch", 1: "sequence"} for name in inputs}
    return ModelSource(str(folder), Forward().eval(), inputs, dynamic, task.outputs, scope="model")
