"""The sections of the data: sources, splits, sizes, other models' samples."""

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from flowllm.config.problems import UnshownError
from flowllm.config.sections.base import Fraction, Name, OwnPath, Section, has_credentials


class Data(Section):
    """Where the crystals come from."""

    source: OwnPath = Field(description="mp_20, bundled, or a folder of CSV or CIF files")
    url: str | None = Field(description="base URL of a mirror or proxy instead of sources.yaml's")

    @field_validator("url")
    @classmethod
    def _url_holds_no_password(cls, url: str | None) -> str | None:
        if url is not None and has_credentials(url):
            raise UnshownError(
                "a user name or password in it would be recorded; take an address without"
            )
        if url is not None and ("?" in url or "#" in url):
            raise UnshownError(
                "the files' names are put at its end, so it cannot have a query (and a token in "
                "it would be recorded); take an address without"
            )
        return url


class Prepare(Section):
    """How raw crystals become the three splits."""

    cell: Literal["primitive", "as_given"]
    max_atoms: PositiveInt = Field(description="crystals with more atoms in the cell are rejected")
    max_rows: PositiveInt | None = Field(description="use this many rows a split, null for all")
    split_shares: tuple[Fraction, Fraction, Fraction] = Field(
        description="train, val, test shares where the source has no split of its own"
    )

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "Prepare":
        if abs(sum(self.split_shares) - 1) > 1e-9:
            raise ValueError(f"split_shares {self.split_shares} must sum to 1")
        if min(self.split_shares) == 0:
            raise ValueError(
                f"split_shares {self.split_shares}: each of the three splits needs crystals, so "
                "each share must be above 0"
            )
        return self


class Sizes(Section):
    """How much is sampled, and how it is cut into shards; only the workflow reads these.

    A shard's content depends on which draws it holds and not on these totals, so that raising a
    total adds shards and keeps the finished ones.
    """

    num_pairs: PositiveInt
    num_val_pairs: PositiveInt
    pairs_per_shard: PositiveInt
    num_samples: PositiveInt = Field(description="crystals to generate at each method")
    samples_per_shard: PositiveInt
    num_csp_crystals: PositiveInt = Field(description="test crystals to predict, the first ones")
    csp_crystals_per_shard: PositiveInt


class External(Section):
    """Another model's samples, measured like ours."""

    name: Name
    file: OwnPath = Field(
        description="folder of CIF or POSCAR files, or one .cif, .csv, .json, .jsonl, .extxyz or "
        ".pt; all but .pt also with .gz"
    )
    shards: PositiveInt = Field(description="parts that are relaxed at the same time")
    column: str | None = Field(
        None, description="of a CSV, or key of JSON's records, with the crystals; null: found"
    )
