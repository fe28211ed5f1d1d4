# SPDX-License-Identifier: Apache-2.0
"""Out-of-distribution input: frames whose pose a robot must not trust, made by ``vmloc confidence``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR, Frame, PointCloud, Sample

_NOISE = 6.0  # of 255: a dark image after the sensor's gain
_APART = 0.5  # of the map's scale: pairs of frames that are closer show the same place

T = TypeVar("T", NDArray[np.uint8], NDArray[np.float32])


def out_of_distribution_frames(
    samples: Sequence[Sample], number: int, foreign: Sequence[Frame], modalities: Sequence[str], scale_m: float
) -> Iterator[tuple[str, Frame]]:
    """Yield ``(kind, frame)`` for every kind of out-of-distribution input, made from one sample of a drive.

    ======================  =========================================================================
    foreign image           the image of another place; the other sensor is unchanged
    covered lens            a black image
    covered lens, noise     a nearly black one
    mirrored image          left and right exchanged
    wrong scene             a frame of another place, with those of its sensors that the model takes
    empty cloud             no point in it (or: no depth measured)
    shuffled pair           the image of one place and the cloud or depth of another in the map
    ======================  =========================================================================

    Kinds that need a modality or a foreign frame that is not there are skipped.

    Args:
        samples: all of the drive.
        number: index of the sample to use.
        foreign: frames of places outside of the map; sample n uses the n-th of them, modulo their number.
        scale_m: standard deviation of the map's positions.
    """
    sample = samples[number]
    frame = sample.frame
    others = {DEPTH, LIDAR} & set(modalities) & set(frame.modalities)
    usable = [candidate for candidate in foreign if set(candidate.modalities) & set(modalities)]
    other_place = usable[number % len(usable)] if usable else None
    if frame.image is not None and IMAGE in modalities:
        yield from _with_other_image(frame, frame.image, other_place)
    if other_place is not None:
        yield "wrong scene", _resized_like(frame, other_place)
    if frame.depth_m is not None and DEPTH in modalities:
        yield "empty depth", replace(frame, depth_m=np.zeros_like(frame.depth_m))
    if frame.cloud is not None and LIDAR in modalities:
        yield "empty cloud", replace(frame, cloud=PointCloud(np.zeros((0, 3), np.float32)))
    partner = samples[(number + len(samples) // 2) % len(samples)]
    distance_m = np.linalg.norm(partner.map_from_body.position_m - sample.map_from_body.position_m)
    if IMAGE in modalities and others and distance_m > _APART * scale_m and partner.frame.image is not None:
        yield "shuffled pair", replace(frame, image=partner.frame.image)


def _with_other_image(frame: Frame, image: NDArray[np.uint8], other_place: Frame | None) -> Iterator[tuple[str, Frame]]:
    """The kinds that change the image alone."""
    if other_place is not None and other_place.image is not None:
        yield "foreign image", replace(frame, image=_fit(other_place.image, image.shape[:2], cv2.INTER_AREA))
    yield "covered lens", replace(frame, image=np.zeros_like(image))
    rng = np.random.default_rng(frame.stamp_ns)
    noise = np.abs(rng.normal(0, _NOISE, image.shape)).clip(0, 255).astype(np.uint8)
    yield "covered lens, noise", replace(frame, image=noise)
    yield "mirrored image", replace(frame, image=np.ascontiguousarray(image[:, ::-1]))


def _resized_like(frame: Frame, other_place: Frame) -> Frame:
    """The frame with the other's measurements; pictures keep the frame's size, as a robot's camera does."""
    size = frame.image.shape[:2] if frame.image is not None else None
    image, depth_m = other_place.image, other_place.depth_m
    if size is not None and image is not None:
        image = _fit(image, size, cv2.INTER_AREA)
    if depth_m is not None and frame.depth_m is not None:
        depth_m = _fit(depth_m, frame.depth_m.shape, cv2.INTER_NEAREST_EXACT)
    return replace(frame, image=image, depth_m=depth_m, cloud=other_place.cloud)


def _fit(picture: T, size: tuple[int, ...], interpolation: int) -> T:
    """The middle of a picture, cropped to the aspect ratio of ``(height, width)`` and scaled to it."""
    height, width = picture.shape[:2]
    scale = min(height / size[0], width / size[1])
    rows, columns = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    window = picture[top : top + rows, left : left + columns]
    return np.ascontiguousarray(cv2.resize(window, (size[1], size[0]), interpolation=interpolation))
