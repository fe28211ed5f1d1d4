# SPDX-License-Identifier: Apache-2.0
"""Why the posterior's variance grows: what noise in the pose is worth to the bound of k samples, for a given error.

python benchmarks/variance_growth.py --out DIR      # writes DIR/variance_growth.md and .png; a minute

One pose coordinate, lambda = 0. The decoded mean is off by e, samples are e + s eps_i with normal eps_i, and the bound
is J_k(s) = E log (1/k) sum_i exp(-loss(e + s eps_i)), with the loss |x| / b of Eq. 11 or x^2 / (2 b^2). Expectations
are means over the same draws of eps for every s.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import logsumexp

from training.output import markdown_table, write_figure, write_text

Array = NDArray[np.float64]
SAMPLES = (1, 2, 10, 50)
LOSSES = {"L1": lambda x: np.abs(x), "squared": lambda x: 0.5 * x**2}
DRAWS = 4000
NOISE = np.concatenate([[0.0], np.geomspace(0.02, 8.0, 70)])  # s / e


def bound(loss: str, error: float, noise: float, k: int, draws: Array) -> float:
    """J_k with b = 1.

    Args:
        draws: ``(DRAWS, K)`` of eps, K >= k.
    """
    values = -LOSSES[loss](error + noise * draws[:, :k])
    return float(np.mean(logsumexp(values, axis=1) - np.log(k)))


def best_noise(loss: str, error: float, k: int, draws: Array) -> float:
    """The s, in units of e, of the largest bound."""
    return float(NOISE[np.argmax([bound(loss, error, error * s, k, draws) for s in NOISE])])


def best_together(errors: Array, k: int, draws: Array) -> tuple[float, float]:
    """The noise and the scale b, one for all errors, whose bound, with the ``-beta`` of Eq. 11, is the largest."""
    best = (-np.inf, 0.0, 0.0)
    for b in np.geomspace(0.2, 4, 25):
        for s in np.concatenate([[0.0], np.geomspace(0.03, 4, 20)]):
            values = -np.abs(errors[:, None] + s * draws[: len(errors), :k]) / b
            value = float(np.mean(logsumexp(values, axis=1))) - np.log(k) - np.log(b)
            best = max(best, (value, float(s), float(b)))
    return best[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("variance_growth"))
    out = parser.parse_args().out
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(DRAWS, max(SAMPLES)))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, ratio in ((left, 1.0), (middle, 10.0)):
        for k in SAMPLES:
            values = np.array([bound("L1", ratio, ratio * s, k, draws) for s in NOISE])
            axes.plot(NOISE, (values - values[0]) / ratio, label=f"k = {k}")
        axes.axhline(0, color="k", linewidth=0.8)
        name = "e = b: balance at its optimum" if ratio == 1 else f"e = {ratio:g} b: the start of a training"
        axes.set(title=name, xlabel="noise s / error e", ylim=(-0.6, 1.0), xlim=(0, 4))
        axes.grid(True, alpha=0.3)
    left.set_ylabel("(J(s) - J(0)) b / e, Eq. 11's L1")
    left.legend(fontsize="small")
    ratios = np.geomspace(0.3, 30, 25)
    rows = []
    for loss, style in (("L1", "-"), ("squared", "--")):
        for k, colour in ((2, "C1"), (10, "C2"), (50, "C3")):
            best = [best_noise(loss, ratio, k, draws) for ratio in ratios]
            right.plot(ratios, best, style, color=colour, label=f"{loss}, k = {k}")
    right.set(xscale="log", xlabel="error e / scale b", title="best noise s / e", ylim=(0, None))
    right.grid(True, alpha=0.3)
    right.legend(fontsize="x-small")
    write_figure(out / "variance_growth.png", figure)
    for name, errors in (
        ("Laplace", generator.laplace(size=DRAWS)),
        ("normal", generator.normal(size=DRAWS) / np.sqrt(2 / np.pi)),
        ("heavy tail (t, 2 degrees of freedom)", generator.standard_t(2, size=DRAWS) / np.sqrt(2)),
    ):
        for k in SAMPLES:
            s, b = best_together(errors, k, draws)
            rows.append([name, k, f"{s:.2f}", f"{b:.2f}", f"{np.abs(errors).mean():.2f}"])
    write_text(out / "variance_growth.md", markdown_table(["errors", "k", "best s", "best b", "mean |e|"], rows) + "\n")
    print((out / "variance_growth.md").read_text())


if __name__ == "__main__":
    main()
