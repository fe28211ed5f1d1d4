# SPDX-License-Identifier: Apache-2.0
"""Debug images of the model's input; no ROS."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vmloc_ros.core.cameras import undistorted
from vmloc_ros.core.frame import DEPTH, LIDAR, Frame, PinholeCamera
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.projection import pinhole_projection

Picture = NDArray[np.uint8]

# OpenCV's Turbo: its lightness has no false edges, unlike jet's, and it resolves the many near ranges.
_COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
_WIDEN_PER_PIXELS = 640  # lidar points grow by one pixel to each side per this many pixels of image width
_TEXT_HEIGHT = 1 / 24  # as a share of the image's height


def range_modality(frame: Frame, preprocessor: Preprocessor) -> str | None:
    """The modality that :func:`range_picture` draws: lidar before depth; None if the frame or model has neither."""
    wanted = [name for name in (LIDAR, DEPTH) if name in preprocessor.config.modalities]
    return next((name for name in wanted if name in frame.modalities), None)


def range_picture(frame: Frame, preprocessor: Preprocessor) -> Picture | None:
    """``(H, W, 3)`` uint8 RGB: range or depth as the model gets it: projected, clipped and normalised.

    The near end of the model's range is red, the far end blue, a cell without a measurement black.

    Returns:
        None where the frame has neither cloud nor depth that the model takes.

    Raises:
        ModelError: pinhole projection lacks intrinsics or extrinsics.
        DataError: the model's crop does not fit.
    """
    name = range_modality(frame, preprocessor)
    if name is None:
        return None
    others = {"image": None, "depth_m": None} if name == LIDAR else {"image": None, "cloud": None}
    prepared = preprocessor.prepare(replace(frame, **others))[name]
    normalised = preprocessor.normalise({name: prepared[None]})[name][0].numpy()
    return _colours((normalised[0] + 1) / 2, normalised[-1] > 0)


def overlay_picture(frame: Frame, range_m: tuple[float, float]) -> Picture | None:
    """``(H, W, 3)`` uint8 RGB: the image with the lidar's points, and the names of the frame's modalities.

    Where edges of points and image do not align, extrinsics, intrinsics or stamps are wrong. The image is undistorted.
    Without intrinsics or extrinsics no points are drawn.

    Args:
        range_m: distances drawn in red and in blue.

    Returns:
        None where the frame has no image.
    """
    if frame.image is None:
        return None
    plain = undistorted(frame)
    assert plain.image is not None
    picture, camera = plain.image.copy(), plain.camera
    words = " + ".join(frame.modalities)
    if frame.cloud is not None and (camera is None or frame.camera_from_lidar is None):
        words += ", no intrinsics" if camera is None else ", no extrinsics"
    elif frame.cloud is not None and camera is not None:
        if picture.shape[:2] != (camera.height, camera.width):
            picture = np.asarray(cv2.resize(picture, (camera.width, camera.height)), np.uint8)
        _draw_points(picture, _ranges(frame, camera), range_m)
    _write(picture, words)
    return picture


def _ranges(frame: Frame, camera: PinholeCamera) -> NDArray[np.float32]:
    """``(H, W)`` distance from the camera of the nearest point in each pixel, metres; 0 without a point."""
    assert frame.cloud is not None  # for the type checker, as below
    assert frame.camera_from_lidar is not None
    depth_m = pinhole_projection(
        torch.from_numpy(np.ascontiguousarray(frame.cloud.xyz_m, np.float32))[None],
        torch.from_numpy(frame.camera_from_lidar.matrix)[None],
        torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])[None],
        camera.height,
        camera.width,
    )[0, 0].numpy()
    x = (np.arange(camera.width, dtype=np.float32) - camera.cx) / camera.fx
    y = (np.arange(camera.height, dtype=np.float32)[:, None] - camera.cy) / camera.fy
    return np.asarray(depth_m * np.sqrt(1 + x * x + y * y), np.float32)


def _draw_points(picture: Picture, points_m: NDArray[np.float32], range_m: tuple[float, float]) -> None:
    """Draw a map of distances, dilated so that single points are visible, near ones in front of far ones."""
    with np.errstate(divide="ignore"):
        nearness = np.where(points_m > 0, 1 / points_m, 0).astype(np.float32)
    side = 1 + 2 * round(picture.shape[1] / _WIDEN_PER_PIXELS)
    nearness = np.asarray(cv2.dilate(nearness, np.ones((side, side), np.uint8)))
    drawn = nearness > 0
    low, high = range_m
    picture[drawn] = _colours((1 / nearness[drawn] - low) / (high - low), np.True_)


def _colours(share: NDArray[np.floating], valid: NDArray[np.bool_] | np.bool_) -> Picture:
    """RGB ``(..., 3)`` of distances from 0 (near, red) to 1 (far, blue); black where not valid."""
    index = np.clip((1 - share) * 255, 0, 255).round().astype(np.uint8)
    return np.asarray(_COLOURS[index] * np.asarray(valid, np.uint8)[..., None], np.uint8)


def _write(picture: Picture, words: str) -> None:
    """Write text into the upper left corner, white with a black outline: legible on any image."""
    height = max(12.0, picture.shape[0] * _TEXT_HEIGHT)
    scale, origin = height / 24, (round(height / 2), round(height * 1.5))
    for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        thickness = max(1, round(width * scale))
        cv2.putText(picture, words, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
