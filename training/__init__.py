# SPDX-License-Identifier: Apache-2.0
"""Offline side: data sources, simulation, training, evaluation and the ``vmloc`` command line."""
