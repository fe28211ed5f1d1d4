# SPDX-License-Identifier: Apache-2.0
"""RobotCar's own pose files of three LOOP drives: lengths, directions, and poses that belong to their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from training.sources.options import RobotCarOptions, SourceOptions
from training.sources.robotcar.calibration import stereo_from_base
from training.sources.robotcar.files import (
    UTM_ORIGIN_M,
    StampedPoses,
    integrate_vo,
    read_gps,
    read_ins,
    read_stamps,
    read_vo,
)
from training.sources.robotcar.source import RobotCarSource
from vmloc_ros.core.geometry import (
    interpolate_poses,
    matrix_from_quaternion,
    rotation_angle_deg,
    rotation_vector_from_quaternion,
)

# Per drive: poses, images, images within the INS's span, rows of bad status, and by how much the INS's stamps are late
# against the cameras', found by comparing the rates of turn of INS and visual odometry.
DRIVES = {
    "2014-06-23-15-36-04": (11595, 3438, 3438, 569, -0.94),
    "2014-06-26-08-53-56": (10219, 3040, 3039, 802, 0.09),
    "2014-06-26-09-24-58": (10252, 3164, 3164, 307, 0.06),
}
FRAME_NS = 62_500_000


@pytest.fixture(scope="module", params=DRIVES)
def drive(request: pytest.FixtureRequest, real_data: Path) -> Path:
    return real_data / "robotcar" / "loop" / request.param


@pytest.fixture(scope="module")
def ins(drive: Path) -> StampedPoses:
    return read_ins(drive / "gps" / "ins.csv")


@pytest.fixture(scope="module")
def vo(drive: Path, real_data: Path) -> StampedPoses:
    extrinsics = real_data / "robotcar" / "calibration" / "extrinsics"
    return integrate_vo(read_vo(drive / "vo" / "vo.csv"), stereo_from_base(extrinsics))


@pytest.fixture(scope="module")
def source(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> RobotCarSource:
    """The drive with images that are empty files: poses and stamps decode none."""
    folder = tmp_path_factory.mktemp("robotcar") / drive.name
    (folder / "stereo" / "centre").mkdir(parents=True)
    (folder / "gps").symlink_to(drive / "gps")
    (folder / "stereo.timestamps").symlink_to(drive / "stereo.timestamps")
    for stamp in read_stamps(drive / "stereo.timestamps"):
        (folder / "stereo" / "centre" / f"{stamp // 1000}.png").touch()
    return RobotCarSource(folder, SourceOptions(robotcar=RobotCarOptions(undistort=False)), ("image",))


def positions(track: StampedPoses) -> np.ndarray:
    return np.stack([pose.position_m for pose in track.poses])


def forward(track: StampedPoses) -> np.ndarray:
    return matrix_from_quaternion(np.stack([pose.quaternion_wxyz for pose in track.poses]))[:, :, 0]


def length_m(path: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def test_counts_and_lengths_are_the_drive_s(drive: Path, ins: StampedPoses, source: RobotCarSource) -> None:
    poses, images, inside, bad, _ = DRIVES[drive.name]
    assert len(ins.poses) == poses
    assert len(read_stamps(drive / "stereo.timestamps")) == images
    assert len(source) == inside
    assert source.report["frames outside the poses' time span"] == images - inside
    good = read_ins(drive / "gps" / "ins.csv", drop_bad_status=True)
    assert (len(good.poses), good.dropped) == (poses - bad, bad)
    assert length_m(positions(ins)[:, :2]) == pytest.approx(1010, abs=5)
    assert length_m(np.stack([pose.position_m for pose in source.poses()])[:, :2]) == pytest.approx(1005, abs=10)


def test_interpolation_at_the_ins_s_own_stamps_returns_its_rows(drive: Path, ins: StampedPoses) -> None:
    table = np.genfromtxt(drive / "gps" / "ins.csv", delimiter=",", skip_header=1, usecols=(5, 6, 7, 12, 13, 14))
    for row, pose in list(zip(table, interpolate_poses(ins.stamps_ns, ins.poses, ins.stamps_ns), strict=True))[::50]:
        assert pose is not None
        north, east, down = row[:3]
        np.testing.assert_allclose(pose.position_m + UTM_ORIGIN_M, [east, north, -down], atol=1e-8)
        ned_from_frd = Rotation.from_euler("xyz", row[3:]).as_matrix()
        enu_from_ned = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
        np.testing.assert_allclose(pose.rotation, enu_from_ned @ ned_from_frd @ np.diag([1, -1, -1]), atol=1e-12)


def test_every_image_has_the_pose_of_its_own_stamp(drive: Path, source: RobotCarSource) -> None:
    """Against scipy's interpolation of the file's columns; with stamps shifted by one frame, most poses are another."""
    table = np.genfromtxt(drive / "gps" / "ins.csv", delimiter=",", skip_header=1, usecols=(0, 5, 6, 7, 12, 13, 14))
    times_us, origin_us = table[:, 0], table[0, 0]
    turn = Slerp(times_us - origin_us, Rotation.from_euler("xyz", table[:, 4:]))

    def expected(stamps_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = stamps_ns / 1000
        north, east, down = (np.interp(at, times_us, column) for column in table[:, 1:4].T)
        rotation = turn((at - origin_us).clip(0, times_us[-1] - origin_us)).as_matrix()
        return np.stack([east, north, -down], axis=1) - UTM_ORIGIN_M, rotation

    stamps, poses = np.array(source.stamps_ns()), source.poses()
    found = np.stack([pose.position_m for pose in poses])
    position, rotation = expected(stamps)
    np.testing.assert_allclose(found, position, atol=1e-4)
    enu_from_ned, flip = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]]), np.diag([1, -1, -1])
    np.testing.assert_allclose([pose.rotation for pose in poses], enu_from_ned @ rotation @ flip, atol=1e-6)
    for shift in (-FRAME_NS, FRAME_NS):
        assert np.median(np.linalg.norm(found - expected(stamps + shift)[0], axis=1)) > 0.2


def test_the_car_drives_forwards(ins: StampedPoses) -> None:
    """Over half a second, wherever it is faster than 2 m/s."""
    step = positions(ins)[25:] - positions(ins)[:-25]
    moving = np.linalg.norm(step, axis=1) > 1.0
    direction = step[moving] / np.linalg.norm(step[moving], axis=1)[:, None]
    along = np.einsum("ni,ni->n", direction, forward(ins)[12 : 12 + len(step)][moving])
    assert np.median(along) > np.cos(np.radians(4))
    assert np.percentile(along, 1) > np.cos(np.radians(25))  # of the first drive, whose INS jumps, 19 degrees
    assert all(pose.rotation[2, 2] > 0.98 for pose in ins.poses[::10])  # and the right way up


def heading(track: StampedPoses) -> np.ndarray:
    """Continuous heading in radians."""
    ahead = forward(track)
    return np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))


def test_stamps_of_ins_and_camera_differ_as_known(drive: Path, ins: StampedPoses, vo: StampedPoses) -> None:
    """A property of the data, not of this code: the first drive's images have poses of almost a second later."""
    late_s = DRIVES[drive.name][4]
    inner = vo.stamps_ns[(vo.stamps_ns > ins.stamps_ns[0] + 2e9) & (vo.stamps_ns < ins.stamps_ns[-1] - 2e9)]
    by_vo, by_ins = np.interp(inner, vo.stamps_ns, heading(vo)), heading(ins)
    offsets_s = np.arange(-1.5, 1.5, 0.01)
    errors = []
    for offset_s in offsets_s:
        difference = np.interp(inner + int(offset_s * 1e9), ins.stamps_ns, by_ins) - by_vo
        errors.append(np.std(difference[8:] - difference[:-8]))  # of the turns within half a second
    assert offsets_s[np.argmin(errors)] == pytest.approx(late_s, abs=0.03)


def test_visual_odometry_and_ins_agree_over_ten_metres(drive: Path, ins: StampedPoses, vo: StampedPoses) -> None:
    """With the difference of the clocks taken out; what is left is 2 % of scale and 1 to 2 degrees of mounting."""
    late_ns = int(DRIVES[drive.name][4] * 1e9)
    stamps = vo.stamps_ns[(vo.stamps_ns > ins.stamps_ns[0] + 2e9) & (vo.stamps_ns < ins.stamps_ns[-1] - 2e9)][::4]
    by_ins = interpolate_poses(ins.stamps_ns, ins.poses, stamps + late_ns)
    by_vo = interpolate_poses(vo.stamps_ns, vo.poses, stamps)
    distance, apart_m, apart_deg, rotations = [], [], [], []
    for i in range(len(stamps) - 8):
        one, other = (track[i].inverse() @ track[i + 8] for track in (by_ins, by_vo))
        distance.append(np.linalg.norm(other.position_m))
        apart_m.append(np.linalg.norm(one.position_m - other.position_m))
        apart_deg.append(rotation_angle_deg(one.quaternion_wxyz, other.quaternion_wxyz))
        rotations.append([rotation_vector_from_quaternion(pose.quaternion_wxyz) for pose in (one, other)])
    moving = np.array(distance) > 5
    assert np.median(np.array(apart_m)[moving] / np.array(distance)[moving]) < 0.05
    assert np.percentile(np.array(apart_m)[moving], 95) < 1.2
    assert np.median(apart_deg) < 0.5
    by_axis = np.array(rotations)  # roll, pitch and yaw each have the sign that the camera saw
    correlations = [np.corrcoef(by_axis[:, 0, axis], by_axis[:, 1, axis])[0, 1] for axis in range(3)]
    assert correlations[0] > 0.9
    assert correlations[1] > 0.5
    assert correlations[2] > 0.99


def test_gps_is_near_the_ins_and_heads_the_same_way(drive: Path, ins: StampedPoses) -> None:
    gps = read_gps(drive / "gps" / "gps.csv")
    pairs = [
        (one, other)
        for one, other in zip(gps.poses, interpolate_poses(ins.stamps_ns, ins.poses, gps.stamps_ns), strict=True)
        if other is not None
    ]
    apart = np.array([one.position_m - other.position_m for one, other in pairs])
    assert np.median(np.linalg.norm(apart[:, :2], axis=1)) < 2
    assert np.median(apart[:, 2]) == pytest.approx(-46.6, abs=0.5)  # the geoid's height in Oxford
    assert np.median([rotation_angle_deg(one.quaternion_wxyz, other.quaternion_wxyz) for one, other in pairs]) < 8
