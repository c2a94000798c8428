"""Small graphs written by hand, in folders as `evle export` writes them: to test what runs them, in no time."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from evle.transforms.text import train_tokenizer

COLOURS = ("red", "green", "blue")
SIDE = 8


def save_exported(folder: Path, **changes: Any) -> Path:
    """A retrieval model whose image embedding is the mean colour, and whose text embedding is the colour it names."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    tokenizer = train_tokenizer([f"a {colour} ball" for colour in COLOURS], 300)
    tokenizer.save_pretrained(folder)
    words = np.full((len(tokenizer), 3), 1e-3, np.float32)
    for index, colour in enumerate(COLOURS):
        (token,) = tokenizer(f" {colour}", add_special_tokens=False)["input_ids"][-1:]
        words[token, index] = 1.0
    image = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["B", 3, "H", "W"])
    ids, mask = (
        helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "T"]) for n in ("input_ids", "attention_mask")
    )
    table = numpy_helper.from_array(words, "words")
    axes = {
        name: numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (("hw", [2, 3]), ("t", [1]))
    }
    image_nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "hw"], ["colour"], keepdims=0),
        helper.make_node("LpNormalization", ["colour"], ["features"], axis=1, p=2),
    ]
    text_nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["each"]),
        helper.make_node("ReduceSum", ["each", "t"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["features"], axis=1, p=2),
    ]
    match_nodes = [
        *[
            helper.make_node(n.op_type, n.input, ["i" if o == "features" else o for o in n.output], **_options(n))
            for n in image_nodes
        ],
        *[
            helper.make_node(n.op_type, n.input, ["x" if o == "features" else o for o in n.output], **_options(n))
            for n in text_nodes
        ],
        helper.make_node("Mul", ["i", "x"], ["product"]),
        helper.make_node("ReduceSum", ["product", "t"], ["yes"], keepdims=1),
        helper.make_node("Neg", ["yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["logits"], axis=1),
    ]
    runs = {}
    for name, nodes, inputs, output, constants in (
        ("image", image_nodes, [image], "features", [axes["hw"]]),
        ("text", text_nodes, [ids, mask], "features", [table, axes["t"]]),
        ("match", match_nodes, [image, ids, mask], "logits", [table, *axes.values()]),
    ):
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, name, inputs, [result], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, folder / f"{name}.onnx")
        runs[name] = {"file": f"{name}.onnx", "inputs": [each.name for each in inputs], "output": output}
    facts = {
        "format": "onnx",
        "family": "eve",
        "task": "retrieval",
        "heads": ["EVEForRetrieval"],
        "runs": runs,
        "image": {"side": SIDE, "framing": "pad", "mean": [0.0] * 3, "std": [1.0] * 3},
        "text": {
            "max_length": 16,
            "clean": True,
            "max_words": 30,
            "pad": 0,
            "slot": None,
            "truncation_side": "right",
            "padded_to": None,
        },
        "scale": 10.0,
        "fingerprint": "by hand",
    }
    (folder / "export.json").write_text(json.dumps({**facts, **changes}))
    return folder


def _options(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
