"""The sections of the data: sources, splits, sizes, other models' samples."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from flowllm.config.problems import UnshownError
from flowllm.config.sections.base import Fraction, Name, OwnPath, Row, Section, has_credentials
from flowllm.config.sections.conditions import OwnProperty, PropertyName


class Data(Section):
    """Where the crystals come from."""

    source: OwnPath = Field(
        description="source of the crystals: mp_20, bundled (pymatgen's AFLOW prototypes), "
        "or a folder of CSV or CIF files",
    )
    url: str | None = Field(
        description="base URL of a mirror or proxy of the source; null: the URL in "
        "data/sources.yaml",
    )

    @field_validator("url")
    @classmethod
    def _url_holds_no_password(cls, url: str | None) -> str | None:
        if url is not None and has_credentials(url):
            raise UnshownError(
                "a user name or password in it would be recorded; use an address without them"
            )
        if url is not None and ("?" in url or "#" in url):
            raise UnshownError(
                "the files' names are appended to it, so it cannot have a query (and a token in "
                "it would be recorded); use an address without a query"
            )
        return url


class Prepare(Section):
    """How raw crystals become the three splits."""

    cell: Literal["primitive", "as_given", "standard"] = Field(
        description="primitive (the cell of minimum volume; paper, section 3), as_given, or "
        "standard (primitive, with origin and axes of the space group's standard setting)"
    )
    max_atoms: PositiveInt = Field(
        description="atoms per cell; crystals with more are rejected; MP-20: 20"
    )
    max_rows: PositiveInt | None = Field(description="rows used per split; null: all")
    split_shares: tuple[Fraction, Fraction, Fraction] = Field(
        description="shares of train, val and test, where the source has no split of its "
        "own; MP-20's shares",
    )
    properties: dict[PropertyName, OwnProperty] = Field(
        description="columns of the source that prompts can give, by name, beside the energies, "
        "band gap and space group: {NAME: {column: COLUMN, categories: [A, B] or null}}",
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

    A shard's content depends on its draws and not on these totals, so that a higher total adds
    shards and keeps the finished ones.
    """

    num_pairs: PositiveInt = Field(description="training pairs of the flow, N_tr; paper, App. C")
    num_val_pairs: PositiveInt = Field(description="pairs for the flow's validation loss")
    pairs_per_shard: PositiveInt = Field(
        description="pairs per shard; 11000 for each of the paper's 300 GPUs"
    )
    num_samples: PositiveInt = Field(
        description="generated crystals per method; paper, section 5.3"
    )
    samples_per_shard: PositiveInt = Field(description="crystals per shard")
    num_csp_crystals: PositiveInt = Field(
        description="test crystals that csp_bases predict, the first ones; MP-20's test "
        "split has 9046",
    )
    csp_crystals_per_shard: PositiveInt = Field(description="test crystals per shard")


class External(Row):
    """Another model's samples, measured like ours."""

    optional_keys: ClassVar[frozenset[str]] = frozenset(
        ("max_crystals", "known_e_above_hull", "known_formation_energy")
    )

    name: Name = Field(description="name of the row in the results")
    file: OwnPath = Field(
        description="folder of CIF or POSCAR files, or one .cif, .csv, .json, .jsonl, "
        ".extxyz or .pt; all but .pt also with .gz",
    )
    shards: PositiveInt = Field(description="number of parts that are relaxed at the same time")
    column: str | None = Field(
        None,
        description="column of a CSV file, or key of the records of a JSON file, that has "
        "the crystals; null: the column is searched for",
    )
    cell: Literal["primitive", "as_given", "standard"] | None = Field(
        None,
        description="cell of the crystals where a method has this row as its base: as in "
        "prepare.cell; null: the file's; the row itself is measured as it is in the file",
    )
    max_crystals: PositiveInt | None = Field(
        None,
        description="samples that are used, drawn by the seed, readable or not; null: all",
    )
    known_e_above_hull: str | None = Field(
        None,
        description="column of a CSV file with known energies above the hull, eV/atom, e.g. by "
        "DFT, which the report compares with the potential's; null: none",
    )
    known_formation_energy: str | None = Field(
        None,
        description="likewise, a column with formation energies, eV/atom",
    )

    @property
    def known_columns(self) -> dict[str, str]:
        """The columns with known energies, by the names of the keys."""
        columns = {
            "known_e_above_hull": self.known_e_above_hull,
            "known_formation_energy": self.known_formation_energy,
        }
        return {name: column for name, column in columns.items() if column is not None}
