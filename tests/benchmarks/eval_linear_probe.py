"""Times the exact linear probe against scikit-learn's, on classes that overlap.

    make bench NAME=eval_linear_probe
    make bench NAME=eval_linear_probe ARGS='--rows 50000 --dim 768 --classes 1000 --noise 3.8 --sklearn 1e-6:1000'

Noise decides how much the classes overlap; the more there are, the less of it gives the same accuracy.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from evaluation.metrics.descent import fit_best_sgd
from evaluation.metrics.logistic import fit, fit_best, objective


def embeddings(
    num_rows: int, dim: int, num_classes: int, noise: float, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns training and test rows with labels: unit vectors of falling variances around the means of classes."""
    rng = np.random.default_rng(seed)
    deviations = np.arange(1, dim + 1) ** -0.5
    deviations /= np.linalg.norm(deviations)
    noises = deviations**0.7
    noises *= noise / np.linalg.norm(noises)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    means = rng.standard_normal((num_classes, dim)) * deviations
    offset = rng.standard_normal(dim) * deviations

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, num_classes, count)
        rows = (means[labels] + offset + rng.standard_normal((count, dim)) * noises).astype(np.float32) @ rotation
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels

    return draw(num_rows), draw(10_000)


def main() -> None:
    """Prints one line a fit: seconds, objective above the best one seen, accuracy on 10,000 test rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--noise", type=float, default=3.0, help="length of the noise; class means have length 1")
    parser.add_argument("--c", type=float, default=10.0)
    parser.add_argument("--sklearn", default="1e-5:100,1e-6:1000", help="tolerance:iterations, comma-separated")
    parser.add_argument("--search", action="store_true", help="time the choice of c and the gradient-descent probe too")
    options = parser.parse_args()
    (features, labels), (test, test_labels) = embeddings(options.rows, options.dim, options.classes, options.noise, 0)
    lines = []

    def note(name: str, seconds: float, weights: np.ndarray, bias: np.ndarray, detail: object) -> None:
        value = objective(features, labels, weights, bias, c=options.c)
        accuracy = ((test @ weights.T + bias).argmax(axis=1) == test_labels).mean()
        lines.append((name, seconds, value, accuracy, detail))
        print(f"{name}: {seconds:.1f} s, objective {value:.4f}, accuracy {accuracy:.4f}, {detail}", flush=True)

    def fit_this() -> tuple[np.ndarray, np.ndarray]:
        start = time.perf_counter()
        weights, bias = fit(features, labels, c=options.c)
        note("this one", time.perf_counter() - start, weights, bias, "")
        return weights, bias

    # Before and after the others, since a machine's speed drifts.
    before = fit_this()
    for setting in filter(None, options.sklearn.split(",")):
        tolerance, iterations = setting.split(":")
        model = LogisticRegression(C=options.c, tol=float(tolerance), max_iter=int(iterations))
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, labels)
        seconds = time.perf_counter() - start
        assert model.coef_.dtype == np.float32
        note(f"scikit-learn {setting}", seconds, model.coef_, model.intercept_, f"{model.n_iter_[0]} iterations")
    after = fit_this()
    print("equal bits:", all(one.tobytes() == other.tobytes() for one, other in zip(before, after, strict=True)))
    if options.search:
        for name, choose in (("choice of c", fit_best), ("gradient descent", fit_best_sgd)):
            start = time.perf_counter()
            probe = choose(features, labels)
            seconds = time.perf_counter() - start
            losses = probe.validation_losses
            tried = {f"{c:.3g}": f"{one:.4f}, loss {losses[c]:.3f}" for c, one in probe.validation_accuracies.items()}
            note(name, seconds, probe.weights, probe.bias, f"chosen {probe.chosen:.4g} of {tried}")
    best = min(line[2] for line in lines)
    print(f"\n{'fit':<28}{'seconds':>9}{'ratio':>8}{'above best':>12}{'accuracy':>10}")
    for name, seconds, value, accuracy, _ in lines:
        print(f"{name:<28}{seconds:>9.1f}{seconds / lines[0][1]:>8.1f}{value / best - 1:>12.1e}{accuracy:>10.4f}")


if __name__ == "__main__":
    main()
