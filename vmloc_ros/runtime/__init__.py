# SPDX-License-Identifier: Apache-2.0
"""What the node needs and knows no ROS: threads, health, odometry filter, extrinsics, frames from messages."""
