# SPDX-License-Identifier: Apache-2.0
"""What a trained model says of held-out frames, and the covariance and confidence that follow from it."""
