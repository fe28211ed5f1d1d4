# SPDX-License-Identifier: Apache-2.0
"""Oxford RobotCar sequences."""
