"""Conditions: what the draws of a base are asked for, and the configuration's own properties."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints, model_validator

from flowllm.config.sections.base import OwnPath, Section

PropertyName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
"""A name of an own property: it is written in braces in its sentence, and heads a column."""

Category = Annotated[str, StringConstraints(pattern=r"^[^\s,{}][^\n\r,{}]*$", max_length=64)]
"""A value of a categorical property, one line of a prompt or a cell of a CSV file."""


class OwnProperty(Section):
    """A column of the source that prompts can give as a condition."""

    column: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="column of the source's CSV files"
    )
    categories: tuple[Category, ...] | None = Field(
        None, min_length=1, description="values of the column; null: the column has numbers"
    )

    @model_validator(mode="after")
    def _categories_differ(self) -> "OwnProperty":
        if self.categories is not None and len(set(self.categories)) != len(self.categories):
            raise ValueError(f"categories {list(self.categories)}: each must be given once")
        return self


class BaseConditions(Section):
    """What each draw of a base is asked for: one set of conditions, or a file with several."""

    formula: str | None = Field(None, description="formula of the cell, e.g. Na4Cl4")
    elements: str | None = Field(None, description="elements of the crystal, e.g. Na,Cl")
    elements_mode: Literal["exact", "subset"] = Field(
        "exact", description="exact (all of the elements must occur) or subset (at least one)"
    )
    num_atoms: PositiveInt | None = Field(None, description="atoms per cell")
    space_group_number: Annotated[int, Field(ge=1, le=230)] | None = Field(
        None, description="number of the space group"
    )
    formation_energy_per_atom: float | None = Field(None, description="eV/atom")
    band_gap: float | None = Field(None, description="eV")
    e_above_hull: float | None = Field(None, description="eV/atom")
    properties: dict[PropertyName, float | str] = Field(
        {}, description="values of the properties of prepare.properties"
    )
    file: OwnPath | None = Field(
        None,
        description="CSV file with one column per condition and one row per wish; the draws are "
        "asked for its rows in turn",
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> "BaseConditions":
        words = self.words()
        if self.file is not None and words:
            raise ValueError(
                f"file and {', '.join(words)} are given; write the conditions into the file, or "
                "leave the file out"
            )
        if self.file is None and not words:
            raise ValueError("no condition is given; give one, a file, or conditions: null")
        return self

    def words(self) -> dict[str, str]:
        """Return the conditions as text by name, as in a row of a file; empty for a file."""
        given = self.model_dump(exclude={"properties", "file", "elements_mode"}, exclude_none=True)
        words = {name: str(value) for name, value in (given | self.properties).items()}
        if self.elements is not None:
            words["elements_mode"] = self.elements_mode
        return words
