"""Pass: every node of the main graph gets a unique name.

1. A node that has a name which no earlier node has keeps it.
2. An unnamed node is named after its first output, which is unique in a valid graph.
3. A repeated name is made unique by the first output, too.
"""

from __future__ import annotations

import onnx


def name_nodes(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the skeleton in which every node of the main graph has a name of its own."""
    named = onnx.ModelProto()
    named.CopyFrom(skeleton)
    taken: set[str] = set()
    for node in named.graph.node:
        if not node.name or node.name in taken:
            output = next((name for name in node.output if name), "nothing")
            name = candidate = f"{node.name or node.op_type}:{output}"
            number = 1
            while candidate in taken:
                number += 1
                candidate = f"{name}:{number}"
            node.name = candidate
        taken.add(node.name)
    return named
