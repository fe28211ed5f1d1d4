# SPDX-License-Identifier: Apache-2.0
"""Where the depth sensor sits in the camera, estimated from edges that both see."""
