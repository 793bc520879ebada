"""Rates over all draws, estimated where DFT was run for a part of the crystals alone.

A crystal that dft_inputs takes for certain counts as it is. Of the others a simple random sample of
fixed size is taken, so that each has the same probability n / N of being computed, and a computed
one counts N / n times (Horvitz and Thompson 1952). The estimate is unbiased over the seeds. A rate
is estimated for properties that each crystal has by itself; of S.U.N. only the stability is DFT's,
since the classes of crystals that were not computed are known by the potential alone.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import hypergeom, norm

from flowllm.evaluate.samples import Sample
from flowllm.evaluate.statistics import CONFIDENCE

NOT_SELECTED = "not_selected"
"""Status of a crystal that dft_inputs could have taken."""

ROUNDING = 1e-12
"""Error of a sum of probabilities; a number whose tail is exactly 2.5 % is in the interval."""


@dataclass(frozen=True)
class Observed:
    """A number of crystals, of which those taken for certain and a random sample are known.

    Attributes:
        certain: crystals that count, among those that are known for certain.
        sampled: crystals that count, among the random sample.
        sample: size of the random sample.
        population: number of crystals that it was drawn from.
        drawn: number of all draws.
    """

    certain: int
    sampled: int
    sample: int
    population: int
    drawn: int

    @property
    def value(self) -> float | None:
        """The estimated rate; None if there is no sample to estimate it from."""
        if not self.drawn or (self.population and not self.sample):
            return None
        weight = self.population / self.sample if self.sample else 0.0
        return (self.certain + weight * self.sampled) / self.drawn


def finite_interval(sampled: int, sample: int, population: int) -> tuple[int, int]:
    """Return the exact 95 % interval of the number of crystals that count in a population.

    These are the numbers that the hypergeometric distribution does not reject on either side at
    2.5 % (the analog of Clopper and Pearson's interval for a sample without replacement).

    Args:
        sampled: crystals of the sample that count.
        sample: size of the sample; 0 gives [0, population].
        population: size of the population.
    """
    if sample == population:
        return sampled, sampled
    numbers, tail = range(population + 1), (1 - CONFIDENCE) / 2 - ROUNDING
    # At least as many as were found become more probable with the number, and at most as many less.
    low = bisect_left(
        numbers, tail, key=lambda one: hypergeom.sf(sampled - 1, population, one, sample)
    )
    above = bisect_right(
        numbers, -tail, key=lambda one: -hypergeom.cdf(sampled, population, one, sample)
    )
    return low, above - 1


def interval(observed: Observed) -> tuple[float, float]:
    """Return the 95 % interval of a rate of the model, from the draws and the sample among them.

    Two independent errors add up: the draws are a sample of the model (Wilson's interval), and the
    computed crystals are a sample of the draws (`finite_interval`). The distances of their bounds
    to the estimate are added in quadrature (MOVER; Zou and Donner 2008). If every crystal was
    computed, the interval is Wilson's. If none of the others was, it is from Wilson's lower bound
    with none of them to its upper bound with all of them.
    """
    drawn, certain = observed.drawn, observed.certain
    if not drawn:
        return 0.0, 1.0
    low, high = finite_interval(observed.sampled, observed.sample, observed.population)
    value = observed.value
    if value is None:
        return _wilson(certain / drawn, drawn)[0], _wilson((certain + high) / drawn, drawn)[1]
    below, above = _wilson(value, drawn)
    return (
        max(0.0, value - math.hypot(value - below, value - (certain + low) / drawn)),
        min(1.0, value + math.hypot(above - value, (certain + high) / drawn - value)),
    )


def _wilson(share: float, drawn: int) -> tuple[float, float]:
    """Return Wilson's interval of a share, whose numerator may be a fraction."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    middle = (share + z**2 / (2 * drawn)) / (1 + z**2 / drawn)
    half = z / (1 + z**2 / drawn) * math.sqrt(share * (1 - share) / drawn + (z / (2 * drawn)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def estimated_rates(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Return the rates over all draws that the computed crystals give.

    A failed or missing DFT run counts as not stable, as in every rate.

    Args:
        samples: all draws, with the choices of dft_inputs.

    Returns:
        The numbers of crystals by choice under `design`, and the estimates by name under `rates`;
        None for a potential, and where the probability of a crystal is not known (selections other
        than all, random and candidates).
    """
    could_run = [one for one in samples if one.taken_as or one.relaxed_status == NOT_SELECTED]
    if not could_run or any(one.inclusion_probability is None for one in could_run):
        return None
    certain = [one for one in could_run if one.inclusion_probability == 1]
    others = [one for one in could_run if one.inclusion_probability != 1]
    sampled = [one for one in others if one.taken_as]

    def estimate(counts: Callable[[Sample], bool]) -> dict[str, Any]:
        observed = Observed(
            certain=sum(map(counts, certain)),
            sampled=sum(map(counts, sampled)),
            sample=len(sampled),
            population=len(others),
            drawn=len(samples),
        )
        low, high = interval(observed)
        return {**asdict(observed), "value": observed.value, "low": low, "high": high}

    found = {
        "stability_rate": estimate(lambda one: one.stable),
        "metastability_rate": estimate(lambda one: one.metastable),
    }
    if all(one.leads_class is not None for one in could_run):
        found |= {
            "sun_rate": estimate(lambda one: one.stable and bool(one.leads_class)),
            "metastable_sun_rate": estimate(lambda one: one.metastable and bool(one.leads_class)),
        }
    design = {
        "certain": len(certain),
        "sample": len(sampled),
        "population": len(others),
        "missing": sum(bool(one.taken_as) and one.relaxed_status == "missing" for one in samples),
    }
    return {"design": design, "rates": found}
