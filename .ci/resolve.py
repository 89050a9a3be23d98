"""Show that every extra installs where users are: PyPI alone, every supported Python, torch's CUDA build.

uv, since it reads the metadata of wheels without downloading them: pip takes gigabytes for the same
answer. Needs the network. Not resolved: the `tensorrt` extra, whose package installs from NVIDIA's index.
"""

import os
import subprocess
import sys

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: Compiled packages must come as wheels: a user's machine may have no compiler.
WHEELS = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "msgspec",
    "pillow",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "ray",
)
#: (extras, constrained to the tested versions, Pythons, glibc). Triton's wheel needs glibc 2.35, and a NumPy
#: that ends with Python 3.12.
INSTALLS = (
    ((), False, PYTHONS, "2_28"),
    (("export", "rtx", "openvino", "polygraphy", "eval", "serve", "dev"), True, PYTHONS, "2_28"),
    (("batch", "ray"), False, PYTHONS, "2_28"),
    (("calibrate",), False, ("3.11", "3.12", "3.13"), "2_28"),
    (("lmms-eval",), False, ("3.11", "3.12", "3.13"), "2_28"),
    (("triton",), False, ("3.11", "3.12"), "2_35"),
)


def resolve(extras: tuple[str, ...], python: str, glibc: str, *, constrained: bool) -> str:
    """Empty when pip could install it, else uv's explanation."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "pyproject.toml", "--no-config"]
    command += [
        "--python-version",
        python,
        "--python-platform",
        f"x86_64-manylinux_{glibc}",
        "-o",
        os.devnull,
    ]
    command += [option for extra in extras for option in ("--extra", extra)]
    command += [option for package in WHEELS for option in ("--only-binary", package)]
    command += ["-c", "constraints.txt"] if constrained else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.stderr if done.returncode else ""


def main() -> int:
    """Resolve each install on each Python; 1 if one cannot be."""
    failed = False
    for extras, constrained, pythons, glibc in INSTALLS:
        for python in pythons:
            reason = resolve(extras, python, glibc, constrained=constrained)
            print(f"python {python} [{','.join(extras)}]: {reason or 'resolves'}")
            failed |= bool(reason)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
