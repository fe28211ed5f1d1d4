#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets everything up, then checks style, types and import directions and runs the tests.
#   scripts/test.sh [PYTEST ARGUMENTS]      e.g. scripts/test.sh -k node, scripts/test.sh -m slow
# Without arguments tests run side by side on all cores, except those over DDS, which a busy machine would hold up. The
# tests marked numeric then run a second time, with kernels for a processor without AVX and FMA: these add in another
# order, as those of other processors do.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh

# Nodes of the tests neither see nor disturb another machine's.
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
python=.venv/bin/python

stage() {
    printf '[test] %s\n' "$1"
    "${@:2}" || { printf '[test] FAILED: %s\n' "$1" >&2 && exit 1; }
}

stage "style (ruff check)" "$python" -m ruff check .
stage "format (ruff format --check)" "$python" -m ruff format --check .
stage "types of vmloc_ros/core (mypy)" "$python" -m mypy
stage "import directions (import-linter)" .venv/bin/lint-imports
if [ $# -gt 0 ]; then
    stage "tests (pytest)" "$python" -m pytest "$@"
else
    side_by_side=(-n auto --maxprocesses 8 --dist loadfile -q)
    stage "tests (pytest)" "$python" -m pytest "${side_by_side[@]}" -m 'not slow and not dds'
    stage "tests over DDS (pytest -m dds)" "$python" -m pytest -m 'dds and not slow'
    stage "numbers on another processor (pytest -m numeric)" \
        env ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 "$python" -m pytest "${side_by_side[@]}" -m 'numeric and not slow'
fi
printf '[test] all passed\n'
