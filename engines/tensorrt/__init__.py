"""TensorRT and TensorRT-RTX: one code path, two sets of bindings.

``bindings`` loads either; ``network`` parses a graph and refuses what the parser
would get wrong in silence; ``profiles`` gives every dynamic size its range;
``builder`` makes the engines; ``facts`` is what the manifest says about them and
what a machine must have to run them; ``session`` runs them on a GPU.
"""
