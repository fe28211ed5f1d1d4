# SPDX-License-Identifier: Apache-2.0
"""Signal, noise and bias of estimators of the encoders' gradient by k, on an analytic model and the shipped network.

python benchmarks/gradient_estimators.py --out DIR     # writes DIR/gradient_estimators.md and .png; some minutes

The gradient is that with respect to mean and log-variance of the joint posterior, for all frames of a fixed batch: what
is propagated back into the encoders, without the cost of running them.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow a busy machine down

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from training.data.dataset import prepare_dataset
from training.data.model_input import model_input
from training.objectives.base import PoseLoss
from training.objectives.variational import bound_loss
from training.output import markdown_table, write_figure, write_text
from training.simulation import simulate
from training.sources import open_sources
from training.sources.options import SourceOptions
from vmloc_ros.core.checkpoint import load_checkpoint
from vmloc_ros.core.models import Posterior
from vmloc_ros.core.models.fusion import Gaussian
from vmloc_ros.core.preprocessing import Preprocessor
from vmloc_ros.core.progress import ProgressBar, progress_bar

ESTIMATORS = ("iwae", "stl", "dreg", "dreg_lambda")
SAMPLES = (1, 5, 10, 50, 200)
GROUPS = 20  # of draws; the variance between them gives the standard errors
FRAMES = 16
CHECKPOINT = Path(__file__).parents[1] / "resource" / "vmloc_street.safetensors"
DRIVE_SEED = 1_000_050  # of a drive that the checkpoint was not trained on


@dataclass(frozen=True)
class Problem:
    """A decoder, a loss and a fixed batch of posteriors.

    Attributes:
        mean, log_variance: ``(B, D)``.
        target: ``(B, 6)``.
        latents: maximum number decoded at once.
        draws: maximum number of independent gradients in a group.
    """

    name: str
    model: Any
    pose_loss: PoseLoss
    mean: Tensor
    log_variance: Tensor
    target: Tensor
    latents: int
    draws: int

    def gradients(self, k: int, kl_weight: float, estimator: str) -> tuple[Tensor, float]:
        """Gradients ``(draws, 2 B D)`` of the batch's summed bound, and the mean effective sample size."""
        draws = min(self.draws, self.latents // (k * len(self.mean)))
        repeated = [x.repeat(draws, 1) for x in (self.mean, self.log_variance, self.target)]
        mean, log_variance, target = repeated[0].requires_grad_(), repeated[1].requires_grad_(), repeated[2]
        posterior = Posterior(Gaussian(mean, log_variance), {}, {})
        bound = bound_loss(self.model, posterior, target, self.pose_loss, k, kl_weight, estimator)
        parts = torch.autograd.grad(-bound.loss.sum(), (mean, log_variance))
        return torch.cat(parts, dim=1).view(draws, -1).double(), float(bound.effective_samples.mean())


@dataclass(frozen=True)
class Length:
    """Estimate of the length of a vector, by its square, which may be negative.

    Attributes:
        error: one standard error of the square.
    """

    square: float
    error: float

    @property
    def value(self) -> float:
        return max(self.square, 0.0) ** 0.5

    @property
    def is_significant(self) -> bool:
        return self.square > 3 * self.error

    def __str__(self) -> str:
        """The value, or an upper limit of three standard errors where it is not significant."""
        return f"{self.value:.2g}" if self.is_significant else f"<{(max(self.square, 0.0) + 3 * self.error) ** 0.5:.1g}"


@dataclass(frozen=True)
class Figures:
    """Results for one estimator, k and lambda.

    Attributes:
        snr: length of the mean gradient by the root of the summed variance of its elements.
        variance: of an element, on average.
        bias: length of the mean's error by the length of the bound's gradient.
        cosine: of the angle between the mean and the bound's gradient.
        effective_samples: mean of ``1 / sum w~^2``.
    """

    snr: Length
    variance: float
    bias: Length
    cosine: float
    effective_samples: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for table, plot and the simulated drive")
    out = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # progress, where no terminal draws a bar
    out.mkdir(parents=True, exist_ok=True)
    wide, narrow, network = analytic_problem("wide q", 2.0), analytic_problem("narrow q", 1.0), network_problem(out)
    settings = [(wide, 1.0), (narrow, 1.0), (wide, 0.001), (network, 1.0), (network, 0.001)]
    results = {}
    figures = len(settings) * len(SAMPLES) * len(ESTIMATORS)
    with progress_bar(figures, "Gradient estimators", "figures") as bar:
        for problem, kl_weight in settings:
            name = f"{problem.name}, lambda = {kl_weight:g}"
            results[name] = {k: measure(problem, k, kl_weight, bar) for k in SAMPLES}
    tables = "\n\n".join(f"### {name[0].upper()}{name[1:]}\n\n{table(figures)}" for name, figures in results.items())
    write_text(out / "gradient_estimators.md", tables + "\n")
    save_plot(out / "gradient_estimators.png", results)
    print(tables)


def analytic_problem(name: str, width: float) -> Problem:
    """Linear decoder, squared loss, latent of 4, one frame.

    The true posterior is a Gaussian with correlations; q is diagonal, and its mean is off by half a standard deviation.

    Args:
        width: q's variance relative to the ELBO's optimum, ``1 / precision``. At 1, q is so much narrower than the true
            posterior that the weights (of lambda = 1) have no third moment here; at 2 they have eight and more.
    """
    generator = torch.Generator().manual_seed(0)
    matrix, target, shift = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (1, 6), (1, 4))
    )
    matrix *= 0.5
    precision = torch.eye(4, dtype=torch.float64) + matrix @ matrix.T
    mean = torch.linalg.solve(precision, matrix @ target.T).T
    variance = width / precision.diagonal().unsqueeze(0)
    shifted = mean + 0.5 * variance.sqrt() * shift
    name = f"analytic, {name}"
    return Problem(name, LinearModel(matrix), SquaredLoss(), shifted, variance.log(), target, 500_000, 5000)


class LinearModel:
    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.matrix


class SquaredLoss(PoseLoss):
    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (predicted - target).square().sum(dim=-1)


def network_problem(out: Path) -> Problem:
    """The shipped checkpoint on frames from a tenth of a lap that it was not trained on, decoded as in training."""
    header, model = load_checkpoint(CHECKPOINT)
    simulate(out / "drive", seed=DRIVE_SEED, laps=0.1, overwrite=True)
    preprocessor = Preprocessor(header.preprocess)
    sources = open_sources(out / "drive", "all", SourceOptions(), header.preprocess.modalities)
    data = prepare_dataset(sources, preprocessor)
    rows = torch.linspace(0, len(data) - 1, FRAMES).long()
    tensors, present = data.batch(rows, torch.device("cpu"))
    with torch.no_grad():
        joint = model.encode(model_input(preprocessor.normalise(tensors), present)).joint
        target = torch.from_numpy(header.pose_codec.encode([data.poses[i] for i in rows.tolist()]))
        model.requires_grad_(False).train()
        torch.manual_seed(0)
        error = (model.decode(joint.sample(100)) - target).abs()
    # Beta and gamma are not in a checkpoint: their optima are the logarithms of the errors.
    beta, gamma = (float(part.sum(-1).mean().log()) for part in error.split(3, dim=-1))
    loss = PoseLoss(beta, gamma).requires_grad_(False)
    return Problem("network", model, loss, joint.mean, joint.log_variance, target, 9600, 20)


def measure(problem: Problem, k: int, kl_weight: float, bar: ProgressBar) -> dict[str, Figures]:
    """Figures of every estimator; the bound's gradient is what ``dreg_lambda`` gives, and for itself ``iwae``."""
    means, variances, effective = {}, {}, {}
    for number, estimator in enumerate(ESTIMATORS):
        torch.manual_seed(1 + number)  # independent draws, so that errors do not cancel in a comparison
        groups = [problem.gradients(k, kl_weight, estimator) for _ in range(GROUPS)]
        means[estimator] = torch.stack([gradients.mean(dim=0) for gradients, _ in groups])
        variances[estimator] = float(torch.stack([gradients.var(dim=0).sum() for gradients, _ in groups]).mean())
        effective[estimator] = sum(size for _, size in groups) / GROUPS
        bar.update()
    figures = {}
    for estimator, mean in means.items():
        true = means["iwae" if estimator == "dreg_lambda" else "dreg_lambda"]
        own, other = length(mean).value, length(true).value
        figures[estimator] = Figures(
            length(mean / variances[estimator] ** 0.5),
            variances[estimator] / mean.shape[1],
            length((mean - true) / other),
            float(mean.mean(dim=0) @ true.mean(dim=0)) / (own * other),
            effective[estimator],
        )
    return figures


def length(means: Tensor) -> Length:
    """Length of the expectation ``(P,)`` of which every row of ``(GROUPS, P)`` is an independent estimate.

    Products of different groups only: the square of a mean would take its noise for signal.
    """
    products = means @ means.T
    square = float(_pair_mean(products))
    all_groups = torch.arange(GROUPS)
    without = [products[all_groups != i][:, all_groups != i] for i in range(GROUPS)]
    jackknife = torch.stack([_pair_mean(kept) for kept in without])
    return Length(square, float((GROUPS - 1) * jackknife.var(correction=0)) ** 0.5)


def _pair_mean(products: Tensor) -> Tensor:
    count = len(products)
    return (products.sum() - products.trace()) / (count * (count - 1))


def table(figures: dict[int, dict[str, Figures]]) -> str:
    """Markdown; a row per k."""
    columns = [f"{what} {estimator}" for what in ("SNR", "variance", "bias") for estimator in ESTIMATORS]
    columns += [f"cosine {estimator}" for estimator in ("stl", "dreg")]
    rows = []
    for k, row in figures.items():
        cells = [f"{row['iwae'].effective_samples:.1f}"]
        cells += [str(row[estimator].snr) for estimator in ESTIMATORS]
        cells += [f"{row[estimator].variance:.2g}" for estimator in ESTIMATORS]
        cells += [str(row[estimator].bias) for estimator in ESTIMATORS]
        cells += [f"{row[estimator].cosine:.2f}" for estimator in ("stl", "dreg")]
        rows.append([k, *cells])
    return markdown_table(["k", "effective samples", *columns], rows, labels=0)


def save_plot(file: Path, results: dict[str, dict[int, dict[str, Figures]]]) -> None:
    figure = Figure(figsize=(3.6 * len(results), 7), layout="constrained")
    above, below = figure.subplots(2, len(results), sharex=True)
    for axes, (name, figures) in zip(above, results.items(), strict=True):
        start = figures[SAMPLES[0]]["dreg"].snr.value
        for power in (0.5, -0.5):
            axes.plot(SAMPLES, [start * k**power for k in SAMPLES], "k:", linewidth=1)
        plot_figure(axes, figures, "snr")
        axes.set_title(name)
    for axes, figures in zip(below, results.values(), strict=True):
        plot_figure(axes, figures, "bias")
        axes.set(xlabel="k", ylim=(0.01, 100))
        axes.set_xticks(SAMPLES, [str(k) for k in SAMPLES])
        axes.minorticks_off()
    above[0].set_ylabel("signal-to-noise ratio\n(dotted: sqrt(k) and 1/sqrt(k))")
    below[0].set_ylabel("bias by the length of the gradient\n(insignificant ones are not shown)")
    above[0].legend(fontsize="small")
    write_figure(file, figure)


def plot_figure(axes: Axes, figures: dict[int, dict[str, Figures]], what: str) -> None:
    """Plot a line per estimator; values less than three standard errors from zero are not shown."""
    for estimator, style, size in zip(ESTIMATORS, ("o-", "s-", "v-", "^--"), (9, 7, 7, 4), strict=True):
        points = [(k, getattr(row[estimator], what)) for k, row in figures.items()]
        seen = [(k, length.value) for k, length in points if length.is_significant]
        axes.plot([k for k, _ in seen], [value for _, value in seen], style, markersize=size, label=estimator)
    axes.set(xscale="log", yscale="log")
    axes.grid(True, alpha=0.3)


if __name__ == "__main__":
    main()
