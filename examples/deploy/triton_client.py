"""Asks a Triton server for one inference of a model that mmcompile built.

pip install 'tritonclient[http]'
python examples/deploy/triton_client.py NAME input_ids=1x128 attention_mask=1x128

Every input is filled with ones. Start the server as out/triton/NAME/README.txt says.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np


def main() -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("shapes", nargs="*", metavar="INPUT=1x128")
    parser.add_argument("--url", default="localhost:8000")
    arguments = parser.parse_args()

    import tritonclient.http as triton
    from tritonclient.utils import triton_to_np_dtype

    shapes = {}
    for text in arguments.shapes:
        name, _, sizes = text.rpartition("=")
        shapes[name] = [int(size) for size in sizes.split("x")]
    client = triton.InferenceServerClient(arguments.url)
    metadata = client.get_model_metadata(arguments.model)
    inputs = []
    for tensor in metadata["inputs"]:
        shape = shapes.get(tensor["name"]) or [max(1, int(size)) for size in tensor["shape"]]
        inputs.append(triton.InferInput(tensor["name"], shape, tensor["datatype"]))
        inputs[-1].set_data_from_numpy(np.ones(shape, triton_to_np_dtype(tensor["datatype"])))
    answer = client.infer(arguments.model, inputs)
    for tensor in metadata["outputs"]:
        value = answer.as_numpy(tensor["name"])
        print(tensor["name"], value.shape, value.reshape(-1)[:4])
    return 0


if __name__ == "__main__":
    sys.exit(main())
