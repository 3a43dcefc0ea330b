"""Tiny ONNX files whose output is a linear function of their picture, for tests of detectors in ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save_linear(
    file: Path,
    output: tuple[int, ...],
    frame: tuple[object, object] = (32, 32),
    batch: object = 1,
    half: bool = False,
    outputs: int = 1,
    bias: np.ndarray | None = None,
    gain: float = 1 / 255,
) -> tuple[np.ndarray, np.ndarray]:
    """Write ``reshape(flat picture @ weights + bias)`` and return weights and bias.

    Args:
        file: Where to.
        output: Shape of what it gives.
        frame: Height and width that it takes; names are sizes that the file leaves open.
        batch: Its first side.
        half: In float16.
        outputs: How many times it gives the same.
        bias: Of that shape; random around 0 if not given.
        gain: How much a change of one of all values of the picture changes the output, about.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    pixels = 3 * 32 * 32
    kind, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = rng.normal(0, gain / pixels**0.5, (pixels, int(np.prod(output)))).astype(number)
    bias = (rng.normal(0, 1, int(np.prod(output))) if bias is None else bias.reshape(-1)).astype(number)
    nodes = [
        helper.make_node("Reshape", ["images", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        *(helper.make_node("Reshape", ["sum", "shape"], [f"output{i}"]) for i in range(outputs)),
    ]
    constants = {
        "flat": np.array([1, pixels], np.int64),
        "weights": weights,
        "bias": bias,
        "shape": np.array(output, np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", kind, [batch, 3, *frame])],
        [helper.make_tensor_value_info(f"output{i}", kind, list(output)) for i in range(outputs)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return weights.astype(np.float64), bias.astype(np.float64)
