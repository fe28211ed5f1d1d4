# SPDX-License-Identifier: Apache-2.0
"""How good a checkpoint is: errors, consistency of covariances, confidence, tables and figures."""
