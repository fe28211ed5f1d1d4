# SPDX-License-Identifier: Apache-2.0
"""Training: the loop, folds, checkpoints and files of a run."""
