"""Measure the shape of the code and fail when it leaves its limits.

A function's length is its lines without the docstring; nested functions count
for themselves and for their parent.
"""

import ast
import statistics
import sys
from pathlib import Path

FOLDERS = ("star_export", "graphs", "engines", "cli")
MEDIAN, NINTH_DECILE, LONGEST, FILE_LINES, DOCUMENTED = 10, 25, 60, 400, 0.9

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def public(tree: ast.Module) -> list[Definition]:
    """Public classes, functions and methods; torch's ``forward`` is described by its class."""
    found: list[Definition] = []
    stack: list[ast.AST] = [tree]
    while stack:
        for node in ast.iter_child_nodes(stack.pop()):
            if isinstance(node, Definition) and not node.name.startswith("_") and node.name != "forward":
                found.append(node)
                if isinstance(node, ast.ClassDef):
                    stack.append(node)
    return found


def main() -> int:
    """Print every measure and return 1 if one is out of its limit."""
    lengths: dict[str, int] = {}
    files: dict[str, int] = {}
    documented: list[bool] = []
    for path in sorted(p for folder in FOLDERS for p in Path(folder).rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        files[str(path)] = text.count("\n")
        documented += [ast.get_docstring(node) is not None for node in public(tree)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{path}:{node.lineno} {node.name}"] = length(node)
    files |= {str(path): path.read_text().count("\n") for path in Path("tests").rglob("*.py")}
    ordered = sorted(lengths.values())
    longest, largest = max(lengths, key=lengths.__getitem__), max(files, key=files.__getitem__)
    ninth = ordered[len(ordered) * 9 // 10]
    share = sum(documented) / len(documented)
    rows = [
        (f"median function of {len(ordered)}", statistics.median(ordered), MEDIAN),
        ("90 % of functions", ninth, NINTH_DECILE),
        (f"longest function ({longest})", lengths[longest], LONGEST),
        (f"longest of {len(files)} files ({largest})", files[largest], FILE_LINES),
    ]
    for name, found, limit in rows:
        print(f"{name}: {found:g} lines, at most {limit}")
    print(f"public docstrings: {share:.0%}, at least {DOCUMENTED:.0%}")
    return int(any(found > limit for _, found, limit in rows) or share < DOCUMENTED)


if __name__ == "__main__":
    sys.exit(main())
