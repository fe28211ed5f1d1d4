# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by the node's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ros_graph import node_in_process


@pytest.fixture
def idle_node(ros_domain: None) -> Iterator[Any]:
    """A node in this process that nothing spins."""
    with node_in_process({"device": "cpu"}) as node:
        yield node


@pytest.fixture(scope="session")
def confidence_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See :func:`image_node.write_confidence_checkpoint`."""
    from image_node import write_confidence_checkpoint

    return write_confidence_checkpoint(tmp_path_factory.mktemp("model") / "confidence.safetensors")


@pytest.fixture(scope="session")
def other_confidence_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, with other weights."""
    from image_node import write_confidence_checkpoint

    return write_confidence_checkpoint(tmp_path_factory.mktemp("model") / "other.safetensors", seed=1)
