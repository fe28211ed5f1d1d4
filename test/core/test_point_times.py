# SPDX-License-Identifier: Apache-2.0
"""Points' times in every field, unit and clock that drivers use, compared with the times that they stand for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lidar_messages import layout_message

from vmloc_ros.core.messages import decode_point_cloud, observe_point_times
from vmloc_ros.core.point_times import PointTimes, compare_times, reading_from, time_fields

STAMP_NS, PERIOD_NS = 1_700_000_000_250_000_000, 100_000_000
COUNT = 600
UNITS_NS = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}
RNG = np.random.default_rng(5)
XYZ = RNG.normal(0, 20, (COUNT, 3)).astype(np.float32)
SWEEP_S = np.tile(np.linspace(0, 0.1, COUNT // 4, endpoint=False), 4)  # four rings, row by row


def columns(**times: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": XYZ[:, 0], "y": XYZ[:, 1], "z": XYZ[:, 2], **times}


def stamps_of(time_s: np.ndarray, stamp_ns: int, unit: str, kind: str, ahead_ns: int = 0) -> np.ndarray:
    """Absolute stamps of another clock, exact for integers."""
    ns = np.round(time_s * 1e9).astype(np.int64) + stamp_ns + ahead_ns
    whole, scale = np.dtype(kind).kind in "iu", int(UNITS_NS[unit])
    return (ns // scale if whole else ns / scale).astype(kind)


def offsets_of(time_s: np.ndarray, unit: str, kind: str) -> np.ndarray:
    values = time_s * 1e9 / UNITS_NS[unit]
    return np.round(values).astype(np.int64).astype(kind) if np.dtype(kind).kind in "iu" else values.astype(kind)


class Listener:
    """A :class:`PointTimes` with what it says."""

    def __init__(self, record: Any = None) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.times = PointTimes("/points", record, self.said.append, self.warned.append)

    def read(self, number: int, **times: np.ndarray) -> np.ndarray | None:
        """Times of the scan with this number."""
        message = layout_message(STAMP_NS + number * PERIOD_NS, columns(**times))
        return decode_point_cloud(message, self.times).time_s


# --- one scan ----------------------------------------------------------------------------------------------------

RELATIVE = [
    ("t", "u4", "ns"), ("t", "u4", "us"), ("time", "f4", "s"), ("time", "f4", "ms"), ("time", "f4", "us"),
    ("time", "f4", "ns"), ("time", "f8", "s"), ("ts", "f4", "s"), ("offset_time", "u4", "ns"), ("t_us", "u4", "us"),
    ("time_offset", "i4", "us"), ("time_offset_ns", "i4", "ns"), ("point_time_offset", "u4", "ns"),
    ("timeStamp", "f8", "s"), ("dt", "u2", "ms"), ("relative_time", "f4", "s"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "unit"), RELATIVE)
@pytest.mark.parametrize("start_s", [0.0, -0.05, -0.1], ids=["start", "middle", "end"])
def test_offsets_from_the_stamp_are_read_in_any_unit(name: str, kind: str, unit: str, start_s: float) -> None:
    if start_s < 0 and kind == "u2":
        pytest.skip("it cannot be negative")
    listener, time_s = Listener(), SWEEP_S + start_s
    found = listener.read(0, **{name: offsets_of(time_s, unit, kind)})
    np.testing.assert_allclose(found, time_s, atol=6e-4 if unit == "ms" and kind == "u2" else 1e-6)
    place = {0.0: "start", -0.05: "middle", -0.1: "end"}[start_s]
    assert len(listener.said) == 1
    assert f"field {name!r}" in listener.said[0]
    assert f"{unit} since the header's stamp; a sweep lasts" in listener.said[0]
    assert listener.said[0].endswith(f"with the stamp at its {place}")
    assert listener.warned == []


@pytest.mark.parametrize("unit", list(UNITS_NS))
@pytest.mark.parametrize(("clock", "ahead_s"), [("of the header's clock", 0), ("TAI", 37), ("GPS", 18)])
@pytest.mark.parametrize("kind", ["f8", "u8"])
def test_absolute_stamps_are_read_in_any_unit(unit: str, clock: str, ahead_s: int, kind: str) -> None:
    if kind == "u8" and unit == "s":
        pytest.skip("whole seconds say nothing")
    listener, time_s = Listener(), SWEEP_S - 0.02
    found = listener.read(0, timestamp=stamps_of(time_s, STAMP_NS, unit, kind, ahead_s * 10**9))
    np.testing.assert_allclose(found, time_s, atol=1.1e-3 if kind == "u8" and unit == "ms" else 2e-6)
    assert clock in listener.said[0]


@pytest.mark.parametrize("names", [("timestampSec", "timestampNsec"), ("sec", "nanosec"), ("lidar_sec", "lidar_nsec")])
def test_seconds_and_their_fraction_are_read_together(names: tuple[str, str]) -> None:
    ns = stamps_of(SWEEP_S, STAMP_NS, "ns", "i8")
    values = (ns // 10**9).astype(np.uint32), (ns % 10**9).astype(np.uint32)
    found = Listener().read(0, **dict(zip(names, values, strict=True)))
    np.testing.assert_allclose(found, SWEEP_S, atol=1e-7)


def test_fields_are_found_by_name_the_likeliest_first() -> None:
    names = (
        "x",
        "lidar_nsec",
        "intensity",
        "TS",
        "ring",
        "lidar_sec",
        "T",
        "timeStamp",
        "tag",
        "trace",
        "i",
        "azimuth",
    )
    assert time_fields(names) == (("T",), ("TS",), ("timeStamp",), ("lidar_sec", "lidar_nsec"))


def test_a_field_that_cannot_be_understood_does_not_hide_one_that_can() -> None:
    found = Listener().read(0, t=np.zeros(COUNT, np.uint32), timestamp=stamps_of(SWEEP_S, STAMP_NS, "s", "f8"))
    np.testing.assert_allclose(found, SWEEP_S, atol=1e-6)


def test_sums_of_unsigned_integers_that_wrap_are_before_the_stamp() -> None:
    values = np.round((SWEEP_S - 0.002) * 1e9).astype(np.int64) % 2**32
    found = Listener().read(0, t=values.astype(np.uint32))
    np.testing.assert_allclose(found, SWEEP_S - 0.002, atol=1e-7)


# Type, unit, and whether absolute: those that are neither too coarse nor too narrow.
ENCODINGS = [
    *((kind, unit, False) for kind in ("u4", "i4") for unit in ("us", "ns")),
    *((kind, unit, False) for kind in ("f4", "f8") for unit in UNITS_NS),
    *(("f8", unit, True) for unit in UNITS_NS),
    *(("u8", unit, True) for unit in ("us", "ns")),
]


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(["t", "time", "timestamp", "timeStamp", "offset_time", "time_stamp", "point_time_offset"]),
    encoding=st.sampled_from(ENCODINGS),
    start_s=st.floats(-0.11, 0.01),
    sweep_s=st.floats(0.006, 0.2),
    order=st.permutations(["x", "y", "z", "intensity", "ring", "time"]),
    gap=st.integers(0, 5),
    row_padding=st.integers(0, 9),
    rows=st.sampled_from([1, 4, 30]),
    big=st.booleans(),
)
def test_any_layout_unit_and_reference_gives_the_plain_cloud(
    name: str,
    encoding: tuple[str, str, bool],
    start_s: float,
    sweep_s: float,
    order: list[str],
    gap: int,
    row_padding: int,
    rows: int,
    big: bool,
) -> None:
    kind, unit, absolute = encoding
    time_s = start_s + sweep_s * SWEEP_S / 0.1
    values = stamps_of(time_s, STAMP_NS, unit, kind) if absolute else offsets_of(time_s, unit, kind)
    intensity = RNG.integers(0, 255, COUNT).astype(np.float32)
    message = layout_message(
        STAMP_NS,
        columns(intensity=intensity, ring=np.arange(COUNT, dtype=np.uint16), **{name: values}),
        height=rows,
        gap=gap,
        row_padding=row_padding,
        big=big,
        order=[name if column == "time" else column for column in order],
    )
    cloud = decode_point_cloud(message)
    np.testing.assert_array_equal(cloud.xyz_m, XYZ)
    np.testing.assert_array_equal(cloud.intensity, intensity)
    near = max(-start_s, start_s + sweep_s) <= 1.5 * max(sweep_s, 0.1)
    if near:
        assert cloud.time_s is not None
        np.testing.assert_allclose(cloud.time_s, time_s, atol=3e-6)
    else:
        assert cloud.time_s is None


# --- what cannot be understood -----------------------------------------------------------------------------------

NOT_UNDERSTOOD = {
    "absolute seconds in float32": ({"time": (SWEEP_S + 1.7e9).astype("f4")}, "the same for all points"),
    "nothing": ({"time": np.zeros(COUNT, "f4")}, "is 0 to 0, the same for all points"),
    "NaN": ({"time": np.full(COUNT, np.nan, "f4")}, "no point with a return has a finite time"),
    "too long": ({"t": (SWEEP_S * 7).astype("f4")}, "nearest reading: s since the header's stamp, by which"),
}


@pytest.mark.parametrize("kind", list(NOT_UNDERSTOOD))
def test_what_fits_no_reading_is_left_out_with_one_warning(kind: str) -> None:
    (times, text), listener = NOT_UNDERSTOOD[kind], Listener()
    assert [listener.read(number, **times) for number in range(12)] == [None] * 12
    assert len(listener.warned) == 1
    assert listener.warned[0].startswith("points' times of /points: left out, and scans used as if measured at once: ")
    assert text in listener.warned[0]
    assert listener.times.record == {"left_out": listener.warned[0].partition("at once: ")[2]}
    assert listener.times.without == 12
    assert listener.said == []


def test_a_malformed_field_for_times_is_left_out_with_its_reason() -> None:
    listener, message = Listener(), layout_message(STAMP_NS, columns(time=SWEEP_S.astype("f4")))
    message.fields[3].count = 3
    cloud = decode_point_cloud(message, listener.times)
    assert cloud.time_s is None
    np.testing.assert_array_equal(cloud.xyz_m, XYZ)
    (text,) = listener.warned
    assert "field 'time' has datatype 7, count 3" in text


def test_points_without_a_return_have_no_say() -> None:
    values = stamps_of(SWEEP_S, STAMP_NS, "s", "f8")
    missing = RNG.random(COUNT) < 0.7
    xyz = np.where(missing[:, None], np.float32(0), XYZ)
    message = layout_message(
        STAMP_NS, {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2], "timestamp": np.where(missing, 0.0, values)}
    )
    found = decode_point_cloud(message).time_s
    assert found is not None
    np.testing.assert_allclose(found[~missing], SWEEP_S[~missing], atol=1e-6)
    assert np.abs(found).max() < 0.11


# --- scan after scan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.34])
def test_points_whose_time_is_wrong_count_as_of_the_sweeps_middle(share: float) -> None:
    listener, wrong = Listener(), np.arange(COUNT) < share * COUNT
    for number in range(3):
        ns = np.round(SWEEP_S * 1e9)
        found = listener.read(number, t=np.where(wrong, 3_604_361_924, ns).astype(np.uint32))
    np.testing.assert_allclose(found[~wrong], SWEEP_S[~wrong], atol=1e-7)
    np.testing.assert_allclose(found[wrong], 0.05, atol=0.005)
    assert listener.warned == []


def test_a_broken_scan_among_good_ones_goes_without_times_and_decides_nothing() -> None:
    good = np.round(SWEEP_S * 1e9).astype(np.uint32)
    listener = Listener()
    assert listener.read(0, t=good * 31) is None
    for number in range(1, 4):
        np.testing.assert_allclose(listener.read(number, t=good), SWEEP_S, atol=1e-7)
    for number in range(4, 8):
        np.testing.assert_allclose(listener.read(number, t=good * 31), 0.05, atol=1e-3)
    np.testing.assert_allclose(listener.read(8, t=good), SWEEP_S, atol=1e-7)
    assert listener.times.without == 5
    assert len(listener.said) == 1
    assert listener.warned == [
        "points' times of /points: those of a scan do not fit those before it, and are left out; no more such scans "
        "are reported"
    ]


def test_a_driver_that_is_set_to_another_unit_is_followed() -> None:
    listener = Listener()
    for number in range(3):
        listener.read(number, t=offsets_of(SWEEP_S, "us", "u4"))
    found = [listener.read(number, t=offsets_of(SWEEP_S, "ns", "u4")) for number in range(3, 10)]
    np.testing.assert_allclose(found[-1], SWEEP_S, atol=1e-6)
    assert [text.partition(" since")[0][-2:] for text in listener.said] == ["us", "ns"]


@pytest.mark.parametrize(("kind", "unit"), [("f8", "s"), ("f8", "ns"), ("u4", "us"), ("u4", "ns")])
def test_a_clock_of_its_own_is_read_from_the_second_scan_on_with_a_warning(kind: str, unit: str) -> None:
    listener, random = Listener(), np.random.default_rng(0)
    for number in range(60):
        stamp_ns, jitter_ns = STAMP_NS + number * PERIOD_NS, int(random.normal(0, 2e6))
        values = stamps_of(SWEEP_S - 0.05, stamp_ns + jitter_ns, unit, kind, -1_699_990_000_123_456_789)
        found = listener.read(number, timestamp=values)
        if number == 0:
            assert found is None
            continue
        assert np.abs(found - (SWEEP_S - 0.05 + jitter_ns * 1e-9)).max() < (0.003 if number > 20 else 0.008)
    (text,) = listener.warned
    assert "of a clock of its own; a sweep lasts" in text
    assert "with the stamp at its middle. That place is assumed, and times may be off by half a sweep" in text


def test_a_clock_that_keeps_no_distance_is_not_read() -> None:
    listener = Listener()
    for number in range(12):
        assert listener.read(number, timestamp=SWEEP_S + 1000.0 + 7.0 * number**2) is None
    assert len(listener.warned) == 1


def test_a_clock_that_is_set_anew_costs_no_wrong_time() -> None:
    listener = Listener()
    for number in range(40):
        ahead_ns = -1_600_000_000_000_000_000 - (5_000_000_000 if number >= 20 else 0)
        values = stamps_of(SWEEP_S - 0.05, STAMP_NS + number * PERIOD_NS, "s", "f8", ahead_ns)
        found = listener.read(number, timestamp=values)
        if number:
            np.testing.assert_allclose(found, SWEEP_S - 0.05, atol=0.002)


def test_a_recording_is_read_by_most_of_its_first_scans_and_alike_from_the_first_on() -> None:
    times = PointTimes()
    rng = np.random.default_rng(2)
    for number in range(10):
        values = rng.integers(0, 2**32, COUNT) if number < 3 else np.round(SWEEP_S * 1e9)
        observe_point_times(layout_message(STAMP_NS + number * PERIOD_NS, columns(t=values.astype(np.uint32))), times)
    times.settle()
    record = json.loads(json.dumps(times.record))
    assert (record["unit"], record["clock"], record["period_s"]) == ("ns", "header", 0.1)
    listener = Listener(record)
    np.testing.assert_allclose(listener.read(0, t=offsets_of(SWEEP_S, "ns", "u4")), SWEEP_S, atol=1e-7)
    assert listener.said == []
    listener.times.announce()
    assert len(listener.said) == 1


def test_the_first_stamps_of_a_simulation_are_read_right_once_its_clock_has_run() -> None:
    listener = Listener()
    for number in range(30):
        stamp_ns = 50_000_000 + number * PERIOD_NS
        message = layout_message(stamp_ns, columns(time=stamps_of(SWEEP_S - 0.05, stamp_ns, "s", "f8")))
        found = decode_point_cloud(message, listener.times).time_s
        if number > 7:
            np.testing.assert_allclose(found, SWEEP_S - 0.05, atol=1e-6)


@pytest.mark.parametrize("period_s", [0.004, 0.05, 0.5, 1.0])
def test_slow_and_fast_lidars_are_understood_by_their_period(period_s: float) -> None:
    listener, time_s = Listener(), SWEEP_S * 10 * period_s * 0.9
    for number in range(8):
        message = layout_message(STAMP_NS + round(number * period_s * 1e9), columns(t=offsets_of(time_s, "ns", "u4")))
        found = decode_point_cloud(message, listener.times).time_s
    np.testing.assert_allclose(found, time_s, atol=1e-6)


# --- training and robot ------------------------------------------------------------------------------------------


def reading(**changes: Any) -> Any:
    values = {"field": "t", "type": "uint32", "unit": "ns", "clock": "header", "sweep_s": 0.1, "period_s": 0.1}
    return reading_from({**values, "header_at": 0.0, **changes})


@pytest.mark.parametrize(
    ("own", "warning", "remark"),
    [
        (reading(), "", ""),
        (reading(field="time", type="float64", unit="ms", clock="TAI"), "", ""),
        (reading(header_at=1.0), "", "which matters little"),
        (None, "poses in motion may be worse", ""),
        (reading(clock="own clock"), "off by half a sweep", ""),
    ],
)
def test_a_difference_from_training_is_a_warning_where_it_matters(own: Any, warning: str, remark: str) -> None:
    for trained, other in ((reading(), own), (own, reading())):
        texts = compare_times(trained, other)
        assert [bool(text) for text in texts] == [bool(warning), bool(remark)]
        assert warning in texts[0]
        assert remark in texts[1]
