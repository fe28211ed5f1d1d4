# SPDX-License-Identifier: Apache-2.0
"""Text output of ``vmloc models`` and ``vmloc info``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from training.config import flatten, parse_config, upgraded
from vmloc_ros.core.checkpoint import CheckpointHeader, Residuals, Uncertainty, load_checkpoint, load_confidence
from vmloc_ros.core.confidence import Confidence
from vmloc_ros.core.config import to_mapping
from vmloc_ros.core.frame import DEPTH, IMAGE, LIDAR
from vmloc_ros.core.models import PoseModel, System, find_system
from vmloc_ros.core.preprocessing import PreprocessConfig
from vmloc_ros.core.uncertainty import growth_factors

Rows = list[tuple[str, str]]


def systems_text(registry: Mapping[str, System]) -> str:
    """Table of systems: name, input modalities, summary."""
    rows = [("name", "takes", "what it is")]
    rows += [(name, ", ".join(system.takes), system.summary) for name, system in registry.items()]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:{first}}  {takes:{second}}  {summary}" for name, takes, summary in rows)


def checkpoint_text(path: Path) -> str:
    """Report on a checkpoint file. Raises CheckpointError as :func:`load_checkpoint`."""
    header, model = load_checkpoint(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return report_text(header, model, metadata, path.stat().st_size, load_confidence(path))


def report_text(
    header: CheckpointHeader,
    model: PoseModel,
    metadata: Mapping[str, str],
    size_bytes: int,
    confidence: Confidence | None = None,
) -> str:
    """Report on a checkpoint, in sections.

    Args:
        metadata: of the file, with the versions that wrote it.
        size_bytes: of the file.
    """
    training, metrics = header.training, dict(header.metrics)
    evaluated_on = {1.0: "metrics on held-out frames", 0.0: "metrics on the training frames"}
    sections = {
        "model": [
            ("system", f"{header.model.name}: {find_system(header.model.name).summary}"),
            ("backbone", header.model.backbone),
        ],
        "parameters": _parameter_rows(model, size_bytes),
        "input": [row for name in header.preprocess.modalities for row in _input_rows(name, header.preprocess)],
        "poses": _pose_rows(header),
        "training data": _data_rows(training),
        "configuration, where it differs from the defaults": _changed_rows(header),
        evaluated_on.get(metrics.pop("held_out", None), "metrics"): [
            (name, f"{value:.0f}" if name == "frames" else f"{value:.3f}") for name, value in metrics.items()
        ],
        "covariance": _uncertainty_rows(header.uncertainty),
        "confidence, and the training frames it stores": _confidence_rows(confidence),
        "versions": [
            ("checkpoint format", metadata["version"]),
            ("vmloc_ros", metadata["vmloc_ros"]),
            *((name, training[name]) for name in ("torch", "torchvision") if name in training),
        ],
    }
    return _format({title: rows for title, rows in sections.items() if rows})


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part: the model's children, and each modality's where a child holds one part for each."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        parts |= (
            {f"{name}.{key}": part for key, part in child.items()}
            if isinstance(child, nn.ModuleDict)
            else {name: child}
        )
    counts = {name: sum(x.numel() for x in part.parameters()) for name, part in parts.items()}
    counts["itself"] = sum(x.numel() for x in model.parameters(recurse=False))
    return {name: count for name, count in counts.items() if count}


def _format(sections: Mapping[str, Rows]) -> str:
    return "\n\n".join(f"{title}\n{_aligned(rows)}" for title, rows in sections.items())


def _aligned(rows: Rows) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in rows)


def _parameter_rows(model: PoseModel, size_bytes: int) -> Rows:
    rows = [(name, f"{count:>12,}") for name, count in count_parameters(model).items()]
    total = sum(x.numel() for x in model.parameters())
    saved = model.state_dict()
    buffers = [
        (name, f"{' x '.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}, stored")
        for name, x in model.named_buffers(recurse=False)
        if name in saved
    ]
    return [*rows, ("total", f"{total:>12,}"), *buffers, ("file", f"{size_bytes / 1e6:.1f} MB")]


def _input_rows(name: str, config: PreprocessConfig) -> Rows:
    crop = "" if config.crop is None else f", of which {config.crop[0]} x {config.crop[1]}"
    picture = f"shortest side {config.shortest_side} pixels{crop}"
    depth = f"{_span(config.depth_range_m)} m"
    if name == IMAGE:
        return [(name, f"RGB, {picture}")]
    if name == DEPTH:
        return [(name, f"depth and validity, {picture}; {depth}")]
    if config.lidar_projection == "pinhole":
        return [(name, f"points in the camera's picture: depth and validity, {picture}; {depth}")]
    cylinder = config.cylinder
    elevation, azimuth = (
        _span(limits)
        for limits in (
            (cylinder.elevation_min_deg, cylinder.elevation_max_deg),
            (cylinder.azimuth_min_deg, cylinder.azimuth_max_deg),
        )
    )
    return [
        (LIDAR, f"range image of {cylinder.rows} x {cylinder.columns}: range, height, intensity and validity"),
        ("", f"elevation {elevation} deg, azimuth {azimuth} deg"),
        (
            "",
            f"range {_span(config.lidar_range_m)} m, height {_span(config.lidar_height_m)} m, "
            f"intensity {_span(config.lidar_intensity)}",
        ),
    ]


def _pose_rows(header: CheckpointHeader) -> Rows:
    codec, bounds = header.pose_codec, header.training.get("poses", {})
    rows = [
        ("frames", f"{header.map_frame} -> {header.body_frame}"),
        ("origin", ", ".join(f"{value:.3f}" for value in codec.origin_m) + " m"),
        ("scale", f"{codec.scale_m:.3f} m"),
    ]
    if bounds:
        spans = zip("xyz", bounds["min_m"], bounds["max_m"], strict=True)
        rows.append(("extent", ", ".join(f"{axis} {_span((low, high))}" for axis, low, high in spans) + " m"))
    return rows


def _data_rows(training: Mapping[str, Any]) -> Rows:
    """Rows on the training data; the record is free-form, and all but a list of sources is shown as it is."""
    data = training.get("data", [])
    rows = [_source_row(source) for source in data] if isinstance(data, list) else [("data", str(data))]
    if "frames" in training:
        rows.append(("used", f"{training['frames']} for training, {training['validation_frames']} for validation"))
    return rows


def _source_row(source: Mapping[str, Any]) -> tuple[str, str]:
    counts = [f"{count} {what}" for what, count in source.items() if what not in ("name", "frames") and count]
    return source["name"], ", ".join([f"{source['frames']} frames", *counts])


def _changed_rows(header: CheckpointHeader) -> Rows:
    own = {"model": to_mapping(header.model), "preprocess": to_mapping(header.preprocess)}
    recorded = {**own, **header.training.get("config", {})}
    recorded = {**upgraded(recorded), **own}  # a configuration that does not parse is shown as it is
    defaults = flatten(to_mapping(parse_config({"model": {"name": header.model.name}}, None, "defaults")))
    changed = {key: value for key, value in flatten(recorded).items() if key not in defaults or defaults[key] != value}
    return [(key, json.dumps(value)) for key, value in changed.items()]


def uncertainty_text(uncertainty: Uncertainty) -> str:
    """Parameters of the covariance, a line each."""
    return _aligned(_uncertainty_rows(uncertainty))


def _uncertainty_rows(uncertainty: Uncertainty) -> Rows:
    rows = _residual_rows(uncertainty.residuals(()))
    for fitted in uncertainty.missing:
        rows += [(f"{name}, {' and '.join(fitted.modalities)} alone", text) for name, text in _residual_rows(fitted)]
    return [*rows, ("samples", str(uncertainty.samples))]


def _residual_rows(residuals: Residuals) -> Rows:
    std, factors = residuals.residual_std, growth_factors(math.log(10), residuals.growth)
    return [
        ("position residual", ", ".join(f"{x:.3f}" for x in std[:3]) + " m along the body's x, y, z"),
        ("rotation residual", ", ".join(f"{math.degrees(x):.2f}" for x in std[3:]) + " deg about them"),
        ("inflation", "position {:.2f}, rotation {:.2f}".format(*residuals.inflation)),
        ("coupling", f"{residuals.coupling:.2f} of the correlations between position and rotation"),
        (
            "growth",
            "position x {:.2f}, rotation x {:.2f} where the p-value of the outlier scores is 0.1".format(*factors),
        ),
    ]


def _confidence_rows(confidence: Confidence | None) -> Rows:
    if confidence is None:
        return [("fitted for", "nothing: estimates have none; `vmloc calibrate` adds it")]
    rows = []
    for name, features in confidence.references.items():
        width, directions = features.basis.shape
        rows.append((name, f"{len(features.coordinates)} frames, {directions} directions of {width} features"))
    return [*rows, ("fitted for", "; ".join(" and ".join(names) for names in confidence.null_distributions))]


def _span(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"
