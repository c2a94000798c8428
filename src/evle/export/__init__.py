"""Models as graphs that run without evle: ONNX files, or programs of torch.export."""
