# SPDX-License-Identifier: Apache-2.0
"""The node's parts that need no ROS: threads, model in service, gate, counters, odometry filter, extrinsics."""
