#!/usr/bin/env bash
# Builds engines/cpp and runs its tests, those too that compare it with Python's star_export.
# Usage: .ci/test_cpp.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
build=${STAR_EXPORT_CPP:-build/cpp}
.ci/build_cpp.sh
[ -x "$build/star_run" ] || exit 0  # it said why
[ -x "$python" ] || { echo "skipped: tests/cpp, which compares with Python: needs $python"; exit 0; }
STAR_EXPORT_CPP=$(realpath "$build") "$python" -m pytest -n auto --dist loadfile tests/cpp
