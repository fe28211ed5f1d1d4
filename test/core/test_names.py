# SPDX-License-Identifier: Apache-2.0
"""Names compare with or without a leading slash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmloc_ros.core.names import find_topic, frame_name, topic_name

words = st.text("abc_/", min_size=1).map(lambda text: text.strip("/")).filter(bool)


@given(name=words, slashes=st.integers(0, 3))
def test_leading_slashes_make_no_difference(name: str, slashes: int) -> None:
    written = "/" * slashes + name
    assert frame_name(written) == name
    assert topic_name(written) == f"/{name}"
    assert find_topic([f"/{name}", f"/{name}/more"], written) == f"/{name}"
    assert find_topic([name], f"/{name}") == name  # some ROS 1 recordings
    assert find_topic([f"/{name}/more"], written) is None


@pytest.mark.parametrize("wanted", ["a/b", "/a/b"])
def test_the_same_spelling_comes_first(wanted: str) -> None:
    assert find_topic(["/a/b", "a/b"], wanted) == wanted
