# SPDX-License-Identifier: Apache-2.0
"""Heartbeats for nav2_lifecycle_manager, over real DDS where package bond (of Nav2) can be imported."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from ros_graph import node_arguments, node_in_process, peer, running, wait_until
from vmloc_ros.ros import bond

pytestmark = pytest.mark.usefixtures("ros_domain")

NODE = "/vmloc_node"


def change(us, transition: int) -> None:
    client = us.node.create_client(ChangeState, f"{NODE}/change_state")
    assert client.wait_for_service(30.0)
    future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
    wait_until(future.done, "the transition")
    assert future.result().success


def test_an_active_node_sends_heartbeats_until_it_is_deactivated_and_says_so(confidence_checkpoint, tmp_path):
    """The manager's end: it takes a node for dead that says so, or is silent for the timeout that both agree on."""
    status = pytest.importorskip("bond.msg", reason="package bond is not installed (Nav2 has it)").Status
    parameters = {"checkpoint": confidence_checkpoint, "device": "cpu", "autostart": "false"}
    with peer() as us, running(node_arguments(parameters), tmp_path / "log"):
        beats = us.collect(status, "/bond")
        change(us, Transition.TRANSITION_CONFIGURE)
        assert not beats
        for _ in range(2):
            before = len(beats)
            change(us, Transition.TRANSITION_ACTIVATE)
            wait_until(lambda n=before + 5: len(beats) >= n, "heartbeats")
            change(us, Transition.TRANSITION_DEACTIVATE)
            wait_until(lambda: not beats[-1].active, "the end of the bond")
        time.sleep(0.5)  # five periods
        ended = [beat for beat in beats if not beat.active]
        assert len({beat.instance_id for beat in ended}) == 2  # a new instance for each bond
        assert beats[-1] is ended[-1]
        assert {beat.id for beat in beats} == {"vmloc_node"}
        assert {round(beat.heartbeat_period, 3) for beat in beats} == {0.1}
        assert {beat.heartbeat_timeout for beat in beats} == {4.0}


def test_without_the_package_there_is_no_bond(monkeypatch):
    monkeypatch.setattr(bond, "TYPE", "no_such_package/msg/Status")
    with node_in_process() as node:
        assert bond.bond_of(node) is None


def test_a_bond_begins_as_a_new_instance_and_says_three_times_that_it_ends(monkeypatch):
    sent = []
    node = SimpleNamespace(
        get_name=lambda: "vmloc_node",
        get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: "now")),
        create_publisher=lambda kind, topic, depth: SimpleNamespace(publish=sent.append, topic=topic),
        create_timer=lambda period_s, callback, clock: callback,
        destroy_timer=lambda timer: None,
    )

    def status(**values):
        return SimpleNamespace(header=SimpleNamespace(), **values)

    monkeypatch.setattr(bond, "message_class", lambda _: status)
    made = bond.Bond(node)
    made.stop()
    assert not sent
    for _ in range(2):
        made.start(0.5)
        made.stop()
    assert [message.active for message in sent] == [True, False, False, False] * 2
    assert len({message.instance_id for message in sent}) == 2
    assert {message.heartbeat_period for message in sent} == {0.5}
