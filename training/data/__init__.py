# SPDX-License-Identifier: Apache-2.0
"""From sources to batches: prepared frames, their cache, splits, sampling, augmentation."""
