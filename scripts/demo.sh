#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets everything up, then replays an unseen simulated traversal into the node and reports how well it was localized.
#   scripts/demo.sh [--seed N] [--out demo_output] [--checkpoint FILE --beams N]    all options: vmloc demo --help
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$venv/bin/vmloc" demo "$@"
