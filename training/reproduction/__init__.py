# SPDX-License-Identifier: Apache-2.0
"""Reproduction of the paper's tables: scenes, experiments, training and evaluation runs, tables, cost."""
