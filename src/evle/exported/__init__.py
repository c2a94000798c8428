"""Exported models, run by onnxruntime: `evle export` writes them, and nothing here needs torch but `model`."""
