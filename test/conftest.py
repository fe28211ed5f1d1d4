# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by the tests."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import hypothesis
import pytest

from ros_graph import private_domain

hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")
logging.setLoggerClass(logging.Logger)  # see ordinary_loggers; here for the modules that tests import at their head


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what talks over DDS: tests of nodes, and those that are in a ROS domain of their own or start the demo."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if (
            folder in ("node", "ros", "replay")
            or "ros_domain" in getattr(item, "fixturenames", ())
            or item.path.stem == "test_demo"
        ):
            item.add_marker(pytest.mark.dds)


@pytest.fixture(autouse=True)
def ordinary_loggers() -> None:
    """Loggers made from here on pass their records on to the root logger, where ``caplog`` listens.

    Importing launch, which its pytest plugins do in every run on a ROS distribution, makes later loggers keep their
    records to themselves (``launch.logging.LaunchLogger``).
    """
    logging.setLoggerClass(logging.Logger)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real recordings, which are not part of the project: in ``VMLOC_TEST_DATA`` or ``../shared/data``."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("VMLOC_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data are not at {folder}; set VMLOC_TEST_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared frames of tests stay out of the user's cache."""
    monkeypatch.setenv("VMLOC_CACHE", str(tmp_path_factory.getbasetemp() / "vmloc_cache"))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws from torch's own generator depends neither on the tests before it nor on which are run."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="module")
def ros_domain():
    """A ROS domain for the tests of one module; skips where rclpy is not installed."""
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    with private_domain():
        yield
