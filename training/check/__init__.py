# SPDX-License-Identifier: Apache-2.0
"""The doctor of a recording (``vmloc check``): what is wrong with it, how much, and what to do."""
