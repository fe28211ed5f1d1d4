# SPDX-License-Identifier: Apache-2.0
"""What the samples of the posterior say of the pose, by k, bound of the variance and estimator.

python benchmarks/posterior_study.py --encoder FILE --train DRIVES --val DRIVES --test DRIVES --out DIR

The networks behind the trunk (heads of mean and log-variance, attention, regressors) are trained anew for every cell of
the grid, on the trunk's features of drives that the trunk was not trained on. Their errors are those of new drives,
which is what a distribution has to describe, and a training takes seconds. Writes DIR/posterior_study.md, .json, .png.

* gain: held-out log-likelihood of the pose under the decoded samples less that under the decoded mean, nats a frame.
  Both are mixtures of densities about the poses, (1/N) sum_i exp(-|p - p_i|_1 / b) / (2b)^3 for the position, with a
  scale for position and one for rotation, fitted on the validation drives. So both may be as wide as they need, and
  the gain is what the samples know beyond one width for all frames.
* coverage: share of the test frames inside the 95 % ellipse of the samples' own covariance of x and y, no residuals.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow a busy machine down

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from torch import Tensor, nn

from training.data.cache import load_dataset
from training.data.model_input import batches
from training.objectives.base import PoseLoss
from training.objectives.variational import bound_loss
from training.output import markdown_table, write_figure, write_text
from training.sources.caching import default_cache
from training.sources.factory import open_all
from training.sources.options import SourceOptions
from vmloc_ros.core.checkpoint import CheckpointHeader, load_checkpoint
from vmloc_ros.core.models import ModelInput, VMLoc, build_model, model_config
from vmloc_ros.core.models.rotation import chord, quaternion_exp, rotation_matrix, six_d_matrix
from vmloc_ros.core.pose_codec import PoseCodec
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import with_progress

SAMPLES = (1, 5, 10, 50)
BOUNDS = (-10.0, -8.0, -6.0, -4.0, -2.0, 0.0)
ESTIMATORS = ("dreg", "dreg_lambda")
LATENTS, HIDDEN, BATCH, RATE, KL_WEIGHT = 64, 128, 32, 1e-3, 1e-4
DRAWN = 200  # samples of each test frame's posterior
CHI2_2D_95 = 5.991


@dataclass(frozen=True)
class Frames:
    """Features ``(N, F)`` of the frozen trunk, and pose vectors ``(N, 6)``."""

    features: Tensor
    targets: Tensor

    def input(self, rows: Tensor) -> ModelInput:
        return ModelInput({"image": self.features[rows][:, :, None, None]}, {"image": torch.ones(len(rows)).bool()})


@dataclass(frozen=True)
class Quality:
    """Figures of one training on the test drives.

    Attributes:
        median_m: error of the decoded mean.
        gain: in log-likelihood, nats a frame; see the module.
        coverage: of the ellipse of 95 %.
        spread_m: median standard deviation of the decoded samples' position.
        effective: mean effective sample size in the last epoch.
        log_variance: mean of the posterior, over test frames and latents.
    """

    median_m: float
    gain: float
    coverage: float
    spread_m: float
    effective: float
    log_variance: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="checkpoint of depth_vmloc or image_vmloc")
    for name in ("train", "val", "test"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    parser.add_argument("--bounds", type=float, nargs="+", default=BOUNDS)
    parser.add_argument("--out", type=Path, default=Path("posterior_study"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    header, model = load_checkpoint(options.encoder)
    frames = [read_frames(paths, header, model.eval()) for paths in (options.train, options.val, options.test)]
    grid = [
        (estimator, k, bound, seed)
        for estimator in ESTIMATORS
        for k in options.samples
        for bound in options.bounds
        for seed in range(options.seeds)
        if k > 1 or estimator == ESTIMATORS[0]  # with one sample they are the same
    ]
    found = {}
    for cell in with_progress(grid, len(grid), "study", "trainings"):
        found[cell] = study(frames, header.pose_codec, cell, options.epochs)
    report(found, options.out)


@torch.no_grad()
def read_frames(paths: list[Path], header: CheckpointHeader, model: nn.Module) -> Frames:
    """Features of all frames that have the encoder's sensor."""
    (name,) = header.preprocess.modalities
    preprocessor = Preprocessor(header.preprocess)
    sources = open_all(paths, "train", SourceOptions(), header.preprocess.modalities)
    data = load_dataset(sources, preprocessor, default_cache(), False)
    cpu = torch.device("cpu")
    parts, kept = [], []
    for rows in torch.arange(len(data)).split(64):
        rows = rows[data.batch(rows, cpu)[1][name]]
        for batch in batches(data, rows, preprocessor, cpu):
            parts.append(model.encoders[name].trunk(batch.tensors[name]).mean(dim=(2, 3)))
        kept += rows.tolist()
    targets = header.pose_codec.encode([data.poses[i] for i in kept])
    return Frames(torch.cat(parts), torch.from_numpy(targets))


def study(frames: list[Frames], codec: PoseCodec, cell: tuple[str, int, float, int], epochs: int) -> Quality:
    """Train what is behind the trunk, and measure it.

    Args:
        frames: of training, validation and test.
        cell: estimator, k, upper bound of the log-variance, seed.
    """
    estimator, k, bound, seed = cell
    torch.manual_seed(seed)
    middle, scale = frames[0].features.mean(dim=0), frames[0].features.std(dim=0).clamp(min=1e-3)
    train, val, test = (Frames((x.features - middle) / scale, x.targets) for x in frames)
    config = model_config(
        "image_vmloc", "shufflenet_v2_x0_5", latent_dim=LATENTS, hidden_dim=HIDDEN, dropout=0.0,
        log_variance_range=(-14.0, bound),
    )  # fmt: skip
    model = build_model(config, {"image": 3})
    width = train.features.shape[1]
    encoder = model.encoders["image"]
    encoder.trunk = nn.Identity()
    encoder.mean = nn.Linear(width, LATENTS)
    pose_loss = PoseLoss(-3.0, -3.0)
    optimizer = torch.optim.Adam(
        [{"params": model.parameters()}, {"params": pose_loss.parameters(), "factor": 100.0}], lr=RATE
    )
    steps, number = epochs * (len(train.features) // BATCH), 0
    for _ in range(epochs):
        effective = []
        for rows in torch.randperm(len(train.features))[: len(train.features) // BATCH * BATCH].split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = RATE * group.get("factor", 1.0) * 0.5 * (1 + np.cos(np.pi * number / steps))
            posterior = model.encode(train.input(rows))
            result = bound_loss(model, posterior, train.targets[rows], pose_loss, k, KL_WEIGHT, estimator)
            optimizer.zero_grad(set_to_none=True)
            result.loss.mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            effective.append(float(result.effective_samples.mean()))
            number += 1
    return quality(model.eval(), val, test, codec, float(np.mean(effective)))


@torch.no_grad()
def quality(model: VMLoc, val: Frames, test: Frames, codec: PoseCodec, effective: float) -> Quality:
    poses, likelihoods = {}, {}
    for which in ("mean", "samples"):
        drawn = {name: decoded(model, x, which == "samples") for name, x in (("val", val), ("test", test))}
        scales = fitted_scales(distances(drawn["val"], val.targets))
        likelihoods[which] = log_likelihood(distances(drawn["test"], test.targets), scales)
        poses[which] = drawn["test"]
    positions = poses["samples"][..., :2].double() * codec.scale_m  # the street is flat
    error = (test.targets[:, :2].double() - poses["mean"][0, :, :2].double()) * codec.scale_m
    centred = positions - positions.mean(dim=0)
    covariance = torch.einsum("kbi,kbj->bij", centred, centred) / (len(positions) - 1)
    squared = torch.einsum("bi,bij,bj->b", error, torch.linalg.inv(covariance + 1e-12 * torch.eye(2)), error)
    joint = model.encode(test.input(torch.arange(len(test.features)))).joint
    distance = (test.targets[:, :3] - poses["mean"][0, :, :3]).norm(dim=1) * codec.scale_m
    return Quality(
        float(distance.median()),
        float(likelihoods["samples"] - likelihoods["mean"]),
        float((squared < CHI2_2D_95).double().mean()),
        float(covariance.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt().median()),
        effective,
        float(joint.log_variance.mean()),
    )


def decoded(model: VMLoc, frames: Frames, sampled: bool) -> Tensor:
    """Outputs ``(K, B, 3 + R)`` of samples of the posterior, or of its mean (K = 1)."""
    joint = model.encode(frames.input(torch.arange(len(frames.features)))).joint
    generator = torch.Generator().manual_seed(0)
    latents = joint.sample(DRAWN, generator) if sampled else joint.mean.unsqueeze(0)
    return torch.cat([model.decode(x).unsqueeze(0) for x in latents])


def distances(drawn: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Errors ``(K, B)`` of the outputs: of the position in the L1 norm, of the rotation by the chord."""
    position = (drawn[..., :3] - targets[:, :3]).abs().sum(dim=-1)
    true = rotation_matrix(quaternion_exp(targets[:, 3:]))
    return position.double(), chord(six_d_matrix(drawn[..., 3:]), true).double()


def log_likelihood(errors: tuple[Tensor, Tensor], log_scales: np.ndarray) -> float:
    """Mean over the frames of ``log (1/K) sum_i`` of the density about each sample, in the codec's units.

    The rotation's density is ``exp(-c / g) / (8 pi g^3)`` of the half-angle vector whose length is the chord c.
    """
    position, rotation = errors
    exponents = -position * np.exp(-log_scales[0]) - rotation * np.exp(-log_scales[1])
    normaliser = 3 * np.log(2) + np.log(8 * np.pi) + 3 * float(np.sum(log_scales)) + np.log(len(position))
    return float((torch.logsumexp(exponents, dim=0) - normaliser).mean())


def fitted_scales(errors: tuple[Tensor, Tensor]) -> np.ndarray:
    """Logarithms of the scales of position and rotation that make the poses most likely."""
    start = [float((error.mean() / 3).clamp(min=1e-6).log()) for error in errors]
    return np.asarray(minimize(lambda x: -log_likelihood(errors, x), start, method="Nelder-Mead").x)


def report(found: dict[tuple[str, int, float, int], Quality], out: Path) -> None:
    """Write the table, the figures of each training and the plot."""
    cells: dict[tuple[str, int, float], list[Quality]] = {}
    for (estimator, k, bound, _), quality_of_one in found.items():
        cells.setdefault((estimator, k, bound), []).append(quality_of_one)

    def text(values: list[Quality], name: str, digits: int) -> str:
        numbers = [getattr(value, name) for value in values]
        spread = f" ± {np.std(numbers, ddof=1):.{digits}f}" if len(numbers) > 1 else ""
        return f"{np.mean(numbers):.{digits}f}{spread}"

    columns = (
        ("median_m", 3), ("gain", 2), ("coverage", 2), ("spread_m", 3), ("effective", 1), ("log_variance", 1),
    )  # fmt: skip
    titles = ["estimator", "k", "bound", "median (m)", "gain (nats)", "coverage", "spread (m)", "effective samples"]
    rows = [[*key, *(text(values, *column) for column in columns)] for key, values in cells.items()]
    write_text(out / "posterior_study.md", markdown_table([*titles, "log-variance"], rows) + "\n")
    record = [{"estimator": e, "k": k, "bound": b, "seed": s, **asdict(x)} for (e, k, b, s), x in found.items()]
    write_text(out / "posterior_study.json", json.dumps(record, indent=1) + "\n")
    save_plot(out / "posterior_study.png", cells)
    print((out / "posterior_study.md").read_text())


def save_plot(file: Path, cells: dict[tuple[str, int, float], list[Quality]]) -> None:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    names = (("median_m", "median error (m)"), ("gain", "gain in log-likelihood (nats)"), ("coverage", "coverage"))
    for axes, (name, label) in zip(figure.subplots(1, 3), names, strict=True):
        for estimator, k in dict.fromkeys((estimator, k) for estimator, k, _ in cells):
            bounds = sorted(bound for e, other, bound in cells if (e, other) == (estimator, k))
            values = [[getattr(x, name) for x in cells[estimator, k, bound]] for bound in bounds]
            deviations = [np.std(x, ddof=1) if len(x) > 1 else 0.0 for x in values]
            line = f"k = {k}" if k == 1 else f"k = {k}, {estimator}"
            look = {"color": f"C{SAMPLES.index(k)}", "linestyle": "--" if estimator == "dreg" and k > 1 else "-"}
            axes.errorbar(bounds, [np.mean(x) for x in values], deviations, marker="o", label=line, capsize=2, **look)
        axes.set(xlabel="upper bound of the log-variance", ylabel=label)
        axes.grid(True, alpha=0.3)
    axes.axhline(0.95, color="k", linestyle=":", linewidth=1)
    axes.legend(fontsize="x-small")
    write_figure(file, figure)


if __name__ == "__main__":
    main()
