# SPDX-License-Identifier: Apache-2.0
"""Public datasets as rosbags that ``vmloc replay`` plays."""
