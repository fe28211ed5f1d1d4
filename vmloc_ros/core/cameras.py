# SPDX-License-Identifier: Apache-2.0
"""The camera of a picture, from the CameraInfo beside it, and pictures as a pinhole camera would have taken them.

A ``sensor_msgs/CameraInfo`` describes two pictures: the raw one, with camera matrix K and distortion D, and the
rectified one that ``image_proc`` makes of it, with rotation R and projection P and without distortion. It does not say
which of them lies beside it. By the convention of ``image_proc`` the topic's name does: ``image_raw`` and ``image`` are
raw, ``image_rect`` and ``image_rect_color`` are rectified. (``roi.do_rectify`` does not: it asks for a rectified region
of its own where the camera took a part of its raw picture.)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.errors import MessageError
from vmloc_ros.core.frame import Distortion, DistortionModel, Frame, PinholeCamera

ImageKind = Literal["auto", "raw", "rectified"]

_RECTIFIED_WORDS = {"rect", "rectified", "undistorted"}
# Numbers of coefficients that OpenCV takes; shorter lists of the rational model are plumb_bob's.
_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (4, 5, 8, 12, 14), "equidistant": (4,)}
_OTHER_NAMES = {"fisheye": "equidistant"}  # OpenCV's name of the same model
_SAME_ASPECT = 0.01  # a picture's sides are scaled alike if their scales differ by less, or by one pixel
# Principal points as multiples of the middle of the picture: beyond the first in any direction they are not believed;
# beyond the second in both directions, and alike to the third, they are those of a larger or smaller picture.
_FARTHEST_CENTRE = (-1.0, 3.0)
_OTHER_SIZE = (1 / 1.5, 1.5)
_ALIKE = 0.15

_CALIBRATE = "calibrate it (camera_calibration's cameracalibrator) and let the driver load the result"
_NO_P = (
    "the pictures are rectified, but P of the camera info is not set; K, which belongs to the raw pictures, is used "
    f"instead; {_CALIBRATE}, or take the raw pictures"
)
_RECTIFY = "run image_proc's rectify node and take its image_rect"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a CameraInfo says of the pictures beside it.

    Attributes:
        camera: at the size that the CameraInfo gives, after its region of interest and binning.
        matrix: which matrix of the CameraInfo it is, ``K`` or ``P``, and why where it is not the expected one.
        warning: why it may be wrong; empty where nothing speaks against it.
    """

    camera: PinholeCamera
    matrix: str
    warning: str = ""

    @property
    def words(self) -> str:
        """The choice in words, such as ``K, with plumb_bob distortion``."""
        distortion = self.camera.distortion
        if distortion is None:
            return f"{self.matrix}, without distortion"
        return f"{self.matrix}, with {distortion.model} distortion, which is undone for systems that need geometry"


def is_rectified(topic: str) -> bool:
    """Whether a topic's name says that its pictures are rectified: ``image_rect_color``, ``rgb/color/rect/image``.

    The last part of the name that says ``raw`` or ``rect`` counts; ``image_rect_raw`` (RealSense) is rectified.
    """
    for part in reversed(topic.lower().split("/")):
        words = set(part.split("_"))
        if words & _RECTIFIED_WORDS:
            return True
        if "raw" in words:
            return False
    return False


def decode_camera_info(msg: Any, rectified: bool = False) -> Calibration:
    """The camera of raw or rectified pictures beside a ``sensor_msgs/CameraInfo``.

    Region of interest and binning are applied to K and P alike, which both refer to the camera's full picture
    (CameraInfo.msg). Raw pictures have K and D; undoing D leads to the picture that ``image_proc`` would publish, with
    P and R, or to one with the same K where P is not set. Rectified pictures have P, or K where P is not set. The
    baseline in P's fourth column is left out: a picture's camera is where its frame is.

    Args:
        rectified: whether the pictures are rectified.

    Raises:
        MessageError: the camera is uncalibrated, a number is not finite, the distortion model is unknown, the message
            has no image size, or the matrix is that of a picture of another size.
    """
    k, p = _matrix(_field(msg, "k"), 3), _matrix(_field(msg, "p"), 4)
    coefficients = np.asarray(_field(msg, "d"), np.float64)
    distorted = bool(np.any(coefficients != 0))  # NaN too
    # Distortion refers to K: without it, P helps only where nothing is distorted.
    candidates = {"P": p, "K": k} if rectified else {"K": k} if distorted else {"K": k, "P": p}
    matrix = next((name for name, found in candidates.items() if found is not None), None)
    if matrix is None:
        raise MessageError(
            f"camera info is uncalibrated: focal lengths and centre of K are {_listed(msg, 'k')}, of P "
            f"{_listed(msg, 'p')}; {_CALIBRATE}"
        )
    chosen = candidates[matrix]
    assert chosen is not None, "the first that is set"
    if problem := _mismatch(chosen, matrix, msg):
        raise MessageError(problem)
    camera, choice = _windowed(chosen, msg), matrix
    if matrix != next(iter(candidates)):
        choice = f"{matrix} of the camera info, since {next(iter(candidates))} is not set"
    if rectified:
        return Calibration(camera, choice, _NO_P if matrix == "K" and distorted else "")
    if not distorted:
        return Calibration(camera, choice)
    view = None if p is None or _mismatch(p, "P", msg) else p
    return Calibration(replace(camera, distortion=_distortion(msg, coefficients, camera, view)), choice)


def resized(camera: PinholeCamera, height: int, width: int) -> PinholeCamera:
    """The camera of the same view in another size; pixel centres are integers, so a picture's corner is at -0.5."""
    if (camera.height, camera.width) == (height, width):
        return camera
    sx, sy = width / camera.width, height / camera.height
    scaled = _Matrix(camera.fx, camera.fy, camera.cx, camera.cy).scaled(sx, sy)
    distortion = camera.distortion
    if distortion is not None:
        view = _Matrix(*distortion.focal_px, *distortion.centre_px).scaled(sx, sy)
        distortion = replace(distortion, focal_px=(view.fx, view.fy), centre_px=(view.cx, view.cy))
    return PinholeCamera(width, height, scaled.fx, scaled.fy, scaled.cx, scaled.cy, distortion)


def fitted(camera: PinholeCamera, height: int, width: int) -> PinholeCamera:
    """The camera for pictures of this size, which may be the camera's pictures scaled.

    Raises:
        MessageError: the aspect is another one, so that the picture is not that of the camera.
    """
    sx, sy = width / camera.width, height / camera.height
    rounding = max(1 / width, 1 / height)
    if abs(sx / sy - 1) > max(_SAME_ASPECT, rounding):
        raise MessageError(
            f"the picture is {width}x{height}, but its camera info is of pictures of {camera.width}x{camera.height}, "
            "which have another aspect; let the driver load the calibration of this video mode, or set roi and binning "
            "in the camera info"
        )
    return resized(camera, height, width)


def undistorted(frame: Frame) -> Frame:
    """The frame as a pinhole camera sees it: picture and depth without distortion, and the camera that they then have.

    Frames without a distorted camera come back as they are. Pixels that the raw picture does not show are black, and
    have no depth. Depth that is rectified already stays as it is.
    """
    if frame.camera is None or frame.camera.distortion is None:
        return frame
    image, depth_m = frame.image, frame.depth_m
    if image is not None:
        image = undistort_image(image, frame.camera)
    if depth_m is not None and not frame.depth_is_rectified:
        depth_m = _undistort_depth(depth_m, frame.camera)
    return replace(frame, image=image, depth_m=depth_m, camera=frame.camera.undistorted)


def undistort_image(image: NDArray[np.uint8], camera: PinholeCamera) -> NDArray[np.uint8]:
    """The picture ``(H, W, 3)`` of ``camera.undistorted``, black where the raw picture shows nothing."""
    columns, fractions = _fixed_maps(resized(camera, *image.shape[:2]))
    return np.asarray(cv2.remap(image, columns, fractions, cv2.INTER_LINEAR), np.uint8)


class PictureCamera:
    """The camera of one topic's pictures, from the CameraInfo messages that come beside them.

    The latest valid message counts, so that a camera may change its video mode while it runs, and an uncalibrated
    message before or after valid ones does no harm. What is chosen is told once, and each reason why there is no camera
    once, too: frames then go on without one.

    Args:
        topic: of the pictures.
        kind: ``raw``, ``rectified``, or ``auto``: see :func:`is_rectified`.
        note: called with the choice, in words.
        warn: called with a problem, in words.
    """

    def __init__(
        self, topic: str, kind: ImageKind, note: Callable[[str], object], warn: Callable[[str], object]
    ) -> None:
        self._topic, self._by_name = topic, kind == "auto"
        self._rectified = is_rectified(topic) if kind == "auto" else kind == "rectified"
        self._note, self._warn = note, warn
        self._told: set[str] = set()
        self._latest: Any = None  # not decoded yet
        self._calibration: Calibration | None = None
        self._shape: tuple[int, ...] | None = None  # of the latest picture
        self._camera: PinholeCamera | None = None  # of it

    def take(self, camera_info: Any) -> None:
        """Take in a CameraInfo; it is decoded when the next picture needs it."""
        self._latest = camera_info

    def reject(self, reason: str) -> None:
        """Tell, once, why a CameraInfo is not used."""
        kept = "the one before is kept" if self._calibration else "until a valid one comes, the camera is not known"
        self._once(self._warn, f"{self._topic}: {reason}; {kept}")

    def restart(self) -> None:
        """Forget the camera, but not what has been told, for another pass over the same recording."""
        self._latest = self._calibration = self._camera = self._shape = None

    @property
    def calibration(self) -> Calibration | None:
        """Of the latest valid message; None before there is one."""
        if self._latest is not None:
            message, self._latest = self._latest, None
            try:
                calibration = decode_camera_info(message, self._rectified)
            except MessageError as error:
                self.reject(str(error))
            else:
                self._adopt(calibration)
        return self._calibration

    def of(self, shape: tuple[int, ...] | None) -> PinholeCamera | None:
        """The camera of a picture of this shape ``(H, W, ...)``; None where it is not known.

        Args:
            shape: None for frames without a picture: their camera is that of the latest picture.
        """
        calibration = self.calibration
        if calibration is None:
            return None
        if shape is not None and shape[:2] != self._shape:
            self._shape = shape[:2]
            self._camera = self._fitted(calibration.camera, *shape[:2])
        return calibration.camera if self._shape is None else self._camera

    def _adopt(self, calibration: Calibration) -> None:
        if calibration == self._calibration:
            return
        if self._calibration is not None:
            self._once(self._note, f"{self._topic}: the camera info has changed; the latest one is used")
        self._calibration, self._shape = calibration, None
        kind = "rectified" if self._rectified else "raw"
        source = "by its name" if self._by_name else "as set"
        self._once(self._note, f"{self._topic} is {kind} {source}: its camera is {calibration.words}")
        if calibration.warning:
            self._once(self._warn, f"{self._topic}: {calibration.warning}")

    def _fitted(self, camera: PinholeCamera, height: int, width: int) -> PinholeCamera | None:
        try:
            found = fitted(camera, height, width)
        except MessageError as error:
            self._once(self._warn, f"{self._topic}: {error}; the camera is not used for geometry")
            return None
        if found != camera:
            self._once(
                self._note,
                f"{self._topic}: the picture is {width}x{height}, its camera info of {camera.width}x{camera.height}; "
                "the camera is scaled",
            )
        return found

    def _once(self, tell: Callable[[str], object], text: str) -> None:
        kind = re.sub(r"[-+.\d]+(e[-+]?\d+)?", "", text)  # other numbers, as of a zoom lens, are told once, too
        if kind not in self._told:
            self._told.add(kind)
            tell(text)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Focal lengths and principal point, pixels."""

    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, sx: float, sy: float) -> _Matrix:
        """In a picture that is scaled by these factors."""
        return _Matrix(self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5)


def _field(msg: Any, name: str) -> Any:
    return getattr(msg, name) if hasattr(msg, name) else getattr(msg, name.upper())  # ROS 1 has capital letters


def _matrix(numbers: Any, columns: int) -> _Matrix | None:
    """Focal lengths and centre of a row-major matrix of three rows; None where it is not set or not finite."""
    values = np.asarray(numbers, np.float64)
    if values.size != 3 * columns:
        return None
    fx, fy, cx, cy = (float(values[i]) for i in (0, columns + 1, 2, columns + 2))
    return _Matrix(fx, fy, cx, cy) if np.isfinite([fx, fy, cx, cy]).all() and min(fx, fy) > 0 else None


def _listed(msg: Any, name: str) -> list[float]:
    values, columns = np.asarray(_field(msg, name), np.float64), 3 if name == "k" else 4
    return [float(values[i]) for i in (0, columns + 1, 2, columns + 2) if i < values.size]


def _mismatch(matrix: _Matrix, name: str, msg: Any) -> str | None:
    """Why a matrix cannot be that of the message's full picture; None where nothing speaks against it.

    A lens looks about through the middle of its picture. Where both coordinates of the principal point are the same
    multiple of the middle's, the matrix belongs to a picture that is larger by this factor.
    """
    roi = msg.roi
    # Some drivers give the size of the region here, not that of the full picture.
    width = max(int(msg.width), int(roi.x_offset) + int(roi.width))
    height = max(int(msg.height), int(roi.y_offset) + int(roi.height))
    if width < 1 or height < 1:
        return f"camera info has no image size: width {msg.width}, height {msg.height}"
    x, y = (matrix.cx + 0.5) / (width / 2), (matrix.cy + 0.5) / (height / 2)
    low, high = _FARTHEST_CENTRE
    scale = float(np.sqrt(x * y)) if min(x, y) > 0 else 1.0
    is_other = not _OTHER_SIZE[0] < scale < _OTHER_SIZE[1] and abs(x / y - 1) < _ALIKE
    if low < x < high and low < y < high and not is_other:
        return None
    guess = f" (it fits one of about {scale * width:.0f}x{scale * height:.0f})" if is_other else ""
    return (
        f"camera info of a picture of {width}x{height} has the principal point of {name} at {matrix.cx:g}, "
        f"{matrix.cy:g}: the matrix is that of another picture{guess}; width, height, K and P must refer to the "
        "camera's full picture, with roi and binning for what is cut out of it"
    )


def _windowed(matrix: _Matrix, msg: Any) -> PinholeCamera:
    """The camera after region of interest and binning."""
    binning_x, binning_y = max(int(msg.binning_x), 1), max(int(msg.binning_y), 1)
    width = (int(msg.roi.width) or int(msg.width)) // binning_x
    height = (int(msg.roi.height) or int(msg.height)) // binning_y
    if width < 1 or height < 1:
        raise MessageError(f"camera info has no image size: {width}x{height} after roi and binning")
    return PinholeCamera(
        width,
        height,
        matrix.fx / binning_x,
        matrix.fy / binning_y,
        (matrix.cx - int(msg.roi.x_offset)) / binning_x,
        (matrix.cy - int(msg.roi.y_offset)) / binning_y,
    )


def _distortion(msg: Any, coefficients: NDArray[np.float64], raw: PinholeCamera, p: _Matrix | None) -> Distortion:
    name = str(getattr(msg, "distortion_model", ""))
    model = _OTHER_NAMES.get(name, name)
    if len(coefficients) not in _COEFFICIENTS.get(model, ()) or not np.isfinite(coefficients).all():
        known = "; ".join(f"{key} with {' or '.join(map(str, counts))}" for key, counts in _COEFFICIENTS.items())
        raise MessageError(
            f"camera info has distortion model {name!r} with {len(coefficients)} coefficients "
            f"{coefficients.tolist()}; known are {known}, all finite; {_RECTIFY}"
        )
    kind: DistortionModel = "equidistant" if model == "equidistant" else _polynomial(len(coefficients))
    if p is None:
        focal_px, centre_px, rotation = (raw.fx, raw.fy), (raw.cx, raw.cy), None
    else:
        view = _windowed(p, msg)
        focal_px, centre_px, rotation = (view.fx, view.fy), (view.cx, view.cy), _rotation(_field(msg, "r"))
    return Distortion(kind, tuple(coefficients.tolist()), focal_px, centre_px, rotation)


def _polynomial(count: int) -> DistortionModel:
    return "plumb_bob" if count <= 5 else "rational_polynomial"


def _rotation(numbers: Any) -> tuple[float, ...] | None:
    """A rectifying rotation, row-major; None where it is the identity, or no rotation (some drivers leave zeros)."""
    values = np.asarray(numbers, np.float64)
    if values.size != 9 or not np.isfinite(values).all():
        return None
    matrix = values.reshape(3, 3)
    is_rotation = np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3) and np.linalg.det(matrix) > 0
    return tuple(values.tolist()) if is_rotation and not np.allclose(matrix, np.eye(3), atol=1e-9) else None


def _undistort_depth(depth_m: NDArray[np.float32], camera: PinholeCamera) -> NDArray[np.float32]:
    """Depth of ``camera.undistorted``. Nearest: averaging across an edge would invent surfaces.

    The depth along a rotated optical axis differs, so that points are rotated where the camera's rectification does.
    """
    camera = resized(camera, *depth_m.shape)
    columns, rows = _float_maps(camera)
    moved = np.asarray(cv2.remap(depth_m, columns, rows, cv2.INTER_NEAREST), np.float32)
    distortion = camera.distortion
    assert distortion is not None, "only distorted cameras are asked for"
    if distortion.rotation is None:
        return moved
    # z' = z / (z of the ray in the raw camera's frame, whose z in the rectified frame is 1)
    r = np.reshape(distortion.rotation, (3, 3))
    x = (np.arange(camera.width) - distortion.centre_px[0]) / distortion.focal_px[0]
    y = (np.arange(camera.height)[:, None] - distortion.centre_px[1]) / distortion.focal_px[1]
    return np.asarray(moved / (r[0, 2] * x + r[1, 2] * y + r[2, 2]), np.float32)


@functools.lru_cache(maxsize=4)
def _fixed_maps(camera: PinholeCamera) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Where each pixel of ``camera.undistorted`` lies in the raw picture, as fixed-point numbers, for speed."""
    columns, fractions = cv2.convertMaps(*_maps(camera), cv2.CV_16SC2)
    return np.asarray(columns), np.asarray(fractions)


@functools.lru_cache(maxsize=4)
def _float_maps(camera: PinholeCamera) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return _maps(camera)


def _maps(camera: PinholeCamera) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Columns and rows ``(H, W)`` of each pixel of ``camera.undistorted`` in the raw picture."""
    distortion = camera.distortion
    assert distortion is not None, "only distorted cameras are asked for"
    raw = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    (fx, fy), (cx, cy) = distortion.focal_px, distortion.centre_px
    view = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    rotation = np.eye(3) if distortion.rotation is None else np.reshape(distortion.rotation, (3, 3))
    size, coefficients = (camera.width, camera.height), np.array(distortion.coefficients)
    library = cv2.fisheye if distortion.model == "equidistant" else cv2
    columns, rows = library.initUndistortRectifyMap(raw, coefficients, rotation, view, size, cv2.CV_32FC1)
    return np.asarray(columns), np.asarray(rows)
