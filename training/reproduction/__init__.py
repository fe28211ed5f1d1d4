# SPDX-License-Identifier: Apache-2.0
"""The paper's tables, one command each: scenes, experiments, runs, tables, cost."""
