"""Power laws: error = floor + scale * size ** -exponent, fitted to the runs of a study.

As in studies of scaling (Cherti et al., arXiv 2212.07143; Fan et al., arXiv 2312.04567). The fit is least squares in
the error itself, since runs scatter about as much at any size. For each exponent of a fine grid the best floor and
scale follow from a linear problem of two unknowns that are not negative, so that the best of all is found, for many
samples at once. Intervals are of a bootstrap of residuals, each made larger by sqrt(n / (n - parameters)) for what the
fit has taken of it (Davison and Hinkley, 1997, 6.2).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

SAMPLES = 1000  # of a bootstrap
LEVEL = 0.95
_EXPONENTS = np.exp(np.linspace(np.log(0.01), np.log(4.0), 600))
_LEAST_SIZES = 4  # for three parameters; with three sizes the floor is 0, with fewer there is no fit


class TooFewSizes(ValueError):
    """A power law needs three sizes at least."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number with its bounds; any of them may be infinite."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: Any, samples: Float[np.ndarray, " samples"]) -> "Interval":
        """The percentile interval of samples. They may be infinite, so no quantile lies between two of them."""
        ordered = np.sort(samples)
        low = round((1 - LEVEL) / 2 * (len(ordered) - 1))
        return cls(float(value), float(ordered[low]), float(ordered[len(ordered) - 1 - low]))


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """A fitted law, and the laws of its bootstrap samples.

    Attributes:
      parameters: floor, scale and exponent; scale is the error above the floor at size 1.
      samples: the same of each bootstrap sample.
      has_floor: whether the floor was fitted; with three sizes it is 0.
      spread: standard deviation of a run about the law.
      sizes: smallest and largest that it was fitted to.
    """

    parameters: Float[np.ndarray, "3"]
    samples: Float[np.ndarray, "samples 3"]
    has_floor: bool
    spread: float
    sizes: tuple[float, float]

    def error(self, size: float) -> Interval:
        """The error at a size."""
        return Interval.of(_errors(self.parameters, size), _errors(self.samples, size))

    def parameter(self, number: int) -> Interval:
        """Floor (0), scale (1) or exponent (2)."""
        return Interval.of(self.parameters[number], self.samples[:, number])

    def equal_size(self, other: "PowerLaw", size: float) -> Interval:
        """The size at which this law has the error that the other one has at `size`; infinite if it never does."""
        wanted = _errors(other.parameters, size), _errors(other.samples, size)
        return Interval.of(_size_for(self.parameters, wanted[0]), _size_for(self.samples, wanted[1]))


def fit(sizes: Sequence[float], errors: Sequence[float], seed: int = 0, samples: int = SAMPLES) -> PowerLaw:
    """Fits a power law to runs, several of which may have one size.

    Args:
      sizes, errors: of each run; sizes are positive, errors shares.
      seed: of the bootstrap.

    Raises:
      TooFewSizes: there are fewer than three sizes.
    """
    x, y = np.asarray(sizes, np.float64), np.asarray(errors, np.float64)
    count = len(np.unique(x))
    if count < _LEAST_SIZES - 1:
        raise TooFewSizes(f"{count} sizes; a power law needs three")
    has_floor = count >= _LEAST_SIZES
    parameters = _best(x, y[None], has_floor)[0]
    fitted = _errors(parameters, x)
    residuals = y - fitted
    free = len(y) - (3 if has_floor else 2)
    scaled = residuals * np.sqrt(len(y) / max(free, 1))
    drawn = np.random.default_rng(seed).choice(scaled - scaled.mean(), (samples, len(y)))
    spread = float(np.sqrt(np.square(residuals).sum() / max(free, 1)))
    limits = float(x.min()), float(x.max())
    return PowerLaw(parameters, _best(x, fitted + drawn, has_floor), has_floor, spread, limits)


def _errors(parameters: Float[np.ndarray, "... 3"], size: float | Float[np.ndarray, " n"]) -> Float[np.ndarray, "..."]:
    floor, scale, exponent = np.moveaxis(parameters, -1, 0)
    return floor + scale * np.power(size, -exponent)


def _size_for(parameters: Float[np.ndarray, "... 3"], error: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    floor, scale, exponent = np.moveaxis(parameters, -1, 0)
    above = np.asarray(error) - floor
    reachable = (above > 0) & (scale > 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        size = np.power(np.where(reachable, scale / np.where(reachable, above, 1.0), 1.0), 1 / exponent)
    return np.where(reachable, size, np.inf)


def _best(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, "samples n"], has_floor: bool
) -> Float[np.ndarray, "samples 3"]:
    """The best law of each sample: the least squares over the grid of exponents, and once more around the best one."""
    grid = _EXPONENTS[None]
    step = np.log(_EXPONENTS[1] / _EXPONENTS[0])
    for _ in range(2):
        laws, losses = _solve(x, y, grid, has_floor)
        best = losses.argmin(axis=1)
        found = laws[np.arange(len(y)), best]
        grid = found[:, 2:] * np.exp(np.linspace(-step, step, 41))
    laws, losses = _solve(x, y, grid, has_floor)
    return laws[np.arange(len(y)), losses.argmin(axis=1)]


def _solve(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, "samples n"],
    exponents: Float[np.ndarray, "#samples grid"],
    has_floor: bool,
) -> tuple[Float[np.ndarray, "samples grid 3"], Float[np.ndarray, "samples grid"]]:
    """Floor and scale for each exponent, neither negative, and the sum of squares that is left."""
    middle = np.exp(np.log(x).mean())  # sizes as multiples of it: powers stay near 1
    total, squares = y.sum(axis=1)[:, None], np.square(y).sum(axis=1)[:, None]
    # Sums over runs, one after the other: samples times grid is the largest array there is.
    power_sum, power_squares = np.zeros(exponents.shape), np.zeros(exponents.shape)
    products = np.zeros((len(y), exponents.shape[1]))
    for size, values in zip(x / middle, y.T, strict=True):
        power = np.power(size, -exponents)
        power_sum += power
        power_squares += np.square(power)
        products += power * values[:, None]
    count = float(len(x))
    determinant = count * power_squares - np.square(power_sum)
    safe = np.where(determinant > 1e-12 * count * power_squares, determinant, np.inf)
    floor = (total * power_squares - power_sum * products) / safe if has_floor else np.zeros(products.shape)
    # Where one would be negative, the best has it at 0. Without a scale there is no law: then the floor is 0.
    floor = np.where((floor > 0) & (count * products > power_sum * total), floor, 0.0)
    scale = np.maximum((products - floor * power_sum) / power_squares, 0.0)
    loss = squares - 2 * floor * total - 2 * scale * products
    loss += count * np.square(floor) + 2 * floor * scale * power_sum + np.square(scale) * power_squares
    exponents = np.broadcast_to(exponents, scale.shape)
    return np.stack([floor, scale * np.power(middle, exponents), exponents], axis=-1), loss
