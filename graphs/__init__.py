"""torch -> ONNX: the three graphs as small torch modules, the `star` ops, the export."""
