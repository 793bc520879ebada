"""Forms of the JSON files that the report reads, restricted to the keys that it uses."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from flowllm.evaluate.hull import EnergySource

RATES = (
    *("generated", "structural_validity", "compositional_validity", "validity", "relaxed"),
    *(
        "placed_on_hull",
        "bare_hull",
        "novel_of_relaxed",
        "metastability_rate",
        "stability_rate",
        "uniqueness",
        "novelty",
    ),
    *("novel_of_stable", "unique_of_stable_novel", "metastable_sun_rate", "sun_rate"),
    *("coverage_recall", "coverage_precision", "coverage_precision_of_valid", "fingerprinted"),
    *("match_rate", "match_rate_of_relaxed", "match_rate_loose", "match_rate_loose_of_relaxed"),
    *("stability_rate_below", "stability_rate_at_most", "novelty_train", "novelty_train_val"),
    *("sun_rate_train", "sun_rate_train_val", "sun_rate_greedy"),
    *("sun_per_relaxation", "sun_per_dft_run", "sun_per_candidate"),
)
MEANS = (
    *("rmsd", "rmsd_loose", "delta_energy_per_atom", "delta_energy_per_cell"),
    *("num_steps", "e_above_hull"),
)
DISTANCES = ("wasserstein_density", "wasserstein_num_elements")
"""Names for which the report's tables have columns."""


class Form(BaseModel):
    """Keys that are read; a file may have others. Numbers as text and NaN are rejected."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Rate(Form):
    """A rate with its counts and interval (`statistics.rate`)."""

    numerator: int
    denominator: int
    value: float | None
    low: float
    high: float


class Estimate(Form):
    """A rate that is estimated from a part of the DFT runs (`estimates.Observed`)."""

    certain: int
    sampled: int
    sample: int
    population: int
    drawn: int
    value: float | None
    low: float
    high: float


class Design(Form):
    """Number of crystals by their choice for DFT."""

    certain: int
    sample: int
    population: int
    missing: int


class Estimates(Form):
    """Rates over all draws, estimated from a part of the DFT runs."""

    design: Design
    rates: dict[str, Estimate]


class Mean(Form):
    """A mean with its standard error (`statistics.summary`)."""

    count: int
    mean: float | None
    standard_error: float | None


class Distance(Form):
    """A distance between two sets of crystals."""

    count: int
    reference_count: int
    value: float | None


class Counts(Form):
    """Number of crystals per status, and of the language model's drafts."""

    drawn: int
    not_converged: int
    relaxed: dict[str, int]
    fingerprints: dict[str, int]
    llm_drafts: int
    llm_rejections: dict[str, int]


class StabilityRule(Form):
    """Thresholds in eV/atom."""

    stable_below: float
    inclusive: bool
    metastable_below: float
    min_elements: int


class Matcher(Form):
    """Tolerances of the comparison of crystals."""

    name: str
    ltol: float
    stol: float
    angle_tol: float


class Protocol(Form):
    """Energies, hull and rules behind the numbers."""

    energies: EnergySource
    energy_sources: list[str]
    hull_sources: list[str]
    hull_compositions: int
    hull_not_converged: int
    correction_schemes: list[str]
    stability_rule: StabilityRule
    matcher: Matcher
    novelty_against: str
    known_crystals: str | None
    oxidation_states: str


class Method(Form):
    """A row of `methods` in the configuration."""

    base: str
    flow: str | None
    num_steps: int


class Sampling(Form):
    """Rows of the configuration from which the crystals were made; empty where there is none."""

    base: dict[str, Any]
    setting: dict[str, Any]
    external: dict[str, Any]

    @field_validator("setting")
    @classmethod
    def _is_a_method(cls, setting: dict[str, Any]) -> dict[str, Any]:
        if setting:
            Method.model_validate(setting)
        return setting


class OtherProtocol(Form):
    """Rates by another group's protocol."""

    source: str
    of: str
    stable_at_most: float
    metastable_at_most: float | None
    stability_rate: Rate
    sun_rate: Rate


class Order(Form):
    """A correlation with its interval."""

    value: float | None
    low: float | None
    high: float | None
    count: int


class Check(Form):
    """Agreement with the second potential."""

    potentials: list[str]
    rates: dict[str, Rate]
    orders: dict[str, Order]
    difference: Mean


class Known(Form):
    """One comparison with the energies that the source of the crystals gives."""

    count: int
    rates: dict[str, Rate]
    correlations: dict[str, Order]
    differences: dict[str, Mean]


class Histogram(Form):
    """Number of crystals per number of distinct elements."""

    generated: dict[str, int]
    test: dict[str, int]


class Histograms(Form):
    """Histograms of a method."""

    num_elements: Histogram


def _with_names(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{', '.join(missing)} missing")
    return found


class Metrics(Form):
    """Form of metrics/{kind}/{method}.json."""

    setting: str
    protocol: Protocol
    sampling: Sampling
    counts: Counts
    rates: dict[str, Rate]
    estimates: Estimates | None
    protocols: dict[str, OtherProtocol]
    check: Check | None
    known: dict[str, Known] = {}
    means: dict[str, Mean]
    distances: dict[str, Distance]
    histograms: Histograms
    wishes: dict[str, Rate | None] = {}

    @field_validator("rates")
    @classmethod
    def _has_rates(cls, rates: dict[str, Rate]) -> dict[str, Rate]:
        return _with_names(rates, RATES)

    @field_validator("means")
    @classmethod
    def _has_means(cls, means: dict[str, Mean]) -> dict[str, Mean]:
        return _with_names(means, MEANS)

    @field_validator("distances")
    @classmethod
    def _has_distances(cls, distances: dict[str, Distance]) -> dict[str, Distance]:
        return _with_names(distances, DISTANCES)


class Prediction(Form):
    """Form of csp/{method}.json."""

    setting: str
    attempts: int
    rates: dict[str, Rate]
    means: dict[str, Mean]

    @field_validator("rates")
    @classmethod
    def _has_rates(cls, rates: dict[str, Rate]) -> dict[str, Rate]:
        names = ("match_rate", "match_rate_first", "match_rate_smact_valid")
        return _with_names(rates, (*names, "metre", "metre_first"))

    @field_validator("means")
    @classmethod
    def _has_means(cls, means: dict[str, Mean]) -> dict[str, Mean]:
        return _with_names(means, ("rmse", "rmse_first", "crmse", "crmse_first"))
