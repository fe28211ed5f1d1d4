# SPDX-License-Identifier: Apache-2.0
"""Fit a trained model's covariance and confidence to its estimates for held-out frames."""
