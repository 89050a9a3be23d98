"""TopKGather as a TensorRT plugin."""

PLUGIN_CHOICES = ("aot", "library", "none")
