#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets everything up, then checks style, types and import directions and runs the tests.
#   scripts/test.sh [PYTEST ARGUMENTS]      e.g. scripts/test.sh -k node, scripts/test.sh -m slow
# Without arguments the tests marked numeric run a second time, with kernels for a processor without AVX and FMA: these
# add in another order, as those of other processors do.
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
stage "tests (pytest)" "$python" -m pytest "$@"
if [ $# -eq 0 ]; then
    stage "numbers on another processor (pytest -m numeric)" \
        env ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 "$python" -m pytest -m 'numeric and not slow'
fi
printf '[test] all passed\n'
