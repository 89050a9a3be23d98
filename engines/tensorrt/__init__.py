"""TensorRT and TensorRT-RTX: one code path, two sets of bindings.

Building: ``builder`` makes a bundle's engines, each by a ``worker`` process;
``review`` and ``network`` refuse what the ONNX parser would get wrong in silence;
``profiles`` gives every dynamic size its range. ``facts`` is what the manifest says
about engines, and what a machine needs to run them. Running: ``session`` is the
backend, ``engine`` one loaded engine, ``shapes`` what it takes and gives, ``argmax``
greedy sampling, ``cuda`` the GPU. ``bindings`` loads either TensorRT.
"""
