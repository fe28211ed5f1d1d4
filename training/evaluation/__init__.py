# SPDX-License-Identifier: Apache-2.0
"""Evaluation of checkpoints: pose errors, consistency of covariances, confidence, tables and figures."""
