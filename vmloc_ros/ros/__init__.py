# SPDX-License-Identifier: Apache-2.0
"""What speaks ROS: parameters, subscriptions, publishers, TF, odometry, diagnostics, services, pictures for RViz."""
