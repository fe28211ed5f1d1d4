# SPDX-License-Identifier: Apache-2.0
"""``python -m vmloc_ros.node``: the node without a launch file."""

import sys

from vmloc_ros.node.lifecycle import main

if __name__ == "__main__":
    sys.exit(main())
