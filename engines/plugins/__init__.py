"""``star::TopKGather`` as a TensorRT plugin: one CUDA kernel, two ways into an engine.

``aot`` compiles the kernel while the engine is built and leaves it in the engine; ``library`` is a
C++ plugin that is built with CMake and loaded wherever the engine runs; ``none`` leaves the ONNX
function body, the only choice for TensorRT-RTX. docs/kernels.md says when to take which.
"""

#: Values of ``--plugins``.
PLUGIN_CHOICES = ("aot", "library", "none")
