"""The Arrow schemas of all artifacts.

Every table of crystals begins with the same columns, so that a stage, or a person with pandas,
reads all of them in the same way.
"""

from collections.abc import Sequence

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column of any schema below changes its name, type or meaning."""

_VECTOR = pa.list_(pa.float32(), 3)

_COORDS = pa.list_(_VECTOR)


def _column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = True) -> pa.Field:
    """Return a column, whose meaning is written to every file and to the documentation."""
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


_ID = _column("id", pa.string(), "stable from stage to stage", nullable=False)

_CRYSTAL = [
    _ID,
    _column("atomic_numbers", pa.list_(pa.uint8()), "element of each atom"),
    _column("frac_coords", _COORDS, "fractional coordinates of each atom, in [0, 1)"),
    _column("lengths", _VECTOR, "of the lattice vectors, angstrom"),
    _column("angles", _VECTOR, "of the lattice vectors, degrees"),
]
"""Present in every table of crystals; the four array columns are null where `status` is not ok."""

_OUTCOME = [
    _column("status", pa.string(), "ok, or the short name of what went wrong", nullable=False),
    _column("error", pa.string(), "what went wrong in full; null where status is ok"),
]

_FORMULA = _column("formula", pa.string(), "of the whole cell")

_SAMPLE = [
    _column("prompt", pa.string(), "what the language model was given"),
    _column("text", pa.string(), "what it answered, at the last attempt"),
    _column("attempts", pa.int32(), "drafts made"),
    _column("rejections", pa.list_(pa.string()), "what was wrong with each earlier draft"),
    _column("num_tokens", pa.int32(), "tokens sampled, over all drafts"),
    _column("redraws", pa.int32(), "atoms drawn again, over all drafts (min_distance)"),
    _column("masked", pa.int32(), "atoms that were drawn with masked coordinates, likewise"),
]


_SYMMETRY = [
    _column(
        "symmetry_rotations", pa.list_(pa.int8()), "9 numbers per operation of the text's group"
    ),
    _column("symmetry_translations", pa.list_(pa.float64()), "3 numbers per operation"),
]
"""Operations of the space group that a symmetric text names, on the fractional coordinates of the
crystal columns; null where the text names none."""


def _extend(*groups: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([field for group in groups for field in group])


CRYSTALS = _extend(
    _CRYSTAL,
    [
        _column("num_atoms", pa.int32(), "atoms in the cell"),
        _FORMULA,
        _column("reduced_formula", pa.string(), "the same, reduced"),
        _column("formation_energy_per_atom", pa.float64(), "eV/atom; null if the source is silent"),
        _column("band_gap", pa.float64(), "eV; null if the source is silent"),
        _column("e_above_hull", pa.float64(), "eV/atom; null if the source is silent"),
        _column("space_group_number", pa.int32(), "1 to 230; null if the source is silent"),
    ],
)
"""crystals/{train,val,test}.parquet; `id` is the source's material_id."""

KNOWN_CRYSTALS = pa.schema(_CRYSTAL)
"""crystals/{train,val}.parquet of a released folder: what generated crystals are compared with."""

CRYSTALS_WITH_PROPERTIES = _extend(
    list(CRYSTALS),
    [
        _column("numbers", pa.map_(pa.string(), pa.float64()), "numeric prepare.properties"),
        _column("labels", pa.map_(pa.string(), pa.string()), "categorical prepare.properties"),
    ],
)
"""crystals/{train,val,test}.parquet: with own properties (`prepare.properties`), by name; a value
that the source does not give is left out."""

REJECTED = pa.schema(
    [
        _column("split", pa.string(), "train, val or test; null if the source has no split"),
        _column("file", pa.string(), "of the source", nullable=False),
        _column("row", pa.int64(), "in the file, from 0", nullable=False),
        _column("material_id", pa.string(), "the source's, where it has one"),
        _column("reason", pa.string(), "short name of why it was rejected", nullable=False),
        _column("detail", pa.string(), "the same in full"),
    ]
)
"""crystals/rejected.parquet: every source row that is in no split, and the reason."""

INVARIANCE = pa.schema(
    [
        _column("id", pa.string(), "of the validation crystal", nullable=False),
        _column("num_atoms", pa.int32(), "atoms in the cell", nullable=False),
        _column("perplexity", pa.float64(), "a token of its text as it stands", nullable=False),
        _column("ipt_translation", pa.float64(), "equation 9, moved as a whole", nullable=False),
        _column("ipt_permutation", pa.float64(), "equation 9, atoms reordered", nullable=False),
    ]
)
"""llm/invariance.parquet: perplexities of equivalent descriptions of one crystal."""

PAIRS = _extend(
    _CRYSTAL,
    [
        _column("target_frac_coords", _COORDS, "of c1, the training crystal, species as in c0"),
        _column("target_lengths", _VECTOR, "of c1, angstrom"),
        _column("target_angles", _VECTOR, "of c1, degrees"),
        _column("material_id", pa.string(), "of c1", nullable=False),
        _column("draw", pa.int64(), "number of the draw in its split", nullable=False),
        _FORMULA,
    ],
    _SYMMETRY,
    _SAMPLE,
    _OUTCOME,
)
"""pairs/{train,val}/shard-*.parquet; `id` is `{split}-{draw:08d}`, the crystal columns are c0."""

BASE = _extend(_CRYSTAL, [_FORMULA], _SYMMETRY, _SAMPLE, _OUTCOME)
"""base/{base}/shard-*.parquet: crystals of the language model or of sample_compositions; `id` is
`{base}-{index:06d}`."""

_ASKED = _column("asked", pa.map_(pa.string(), pa.string()), "conditions by name, as written")

REQUESTED_BASE = _extend(list(BASE), [_ASKED])
"""base/{base}/shard-*.parquet: crystals of a base with conditions."""

CSP_BASE = _extend(
    _CRYSTAL,
    [_FORMULA, _column("material_id", pa.string(), "of the test crystal", nullable=False)],
    _SYMMETRY,
    _SAMPLE,
    _OUTCOME,
)
"""base/{csp base}/shard-*.parquet: predicted crystals of the test split's formulas; `id` is
`{base}-{number of the test crystal:06d}-{attempt:03d}`."""

GENERATED = _extend(
    _CRYSTAL,
    [_FORMULA, _column("num_steps", pa.int32(), "integration steps")],
    _OUTCOME,
)
"""generated/{method}/shard-*.parquet: after flow matching; same ids as the base crystals."""

_SOURCE_NAME = _column("source_name", pa.string(), "file, key or id of another model's sample")

IMPORTED = _extend(
    _CRYSTAL,
    [_FORMULA, _column("num_steps", pa.int32(), "0: no integration steps"), _SOURCE_NAME],
    _OUTCOME,
)
"""generated/{external}/shard-*.parquet: other models' samples, read as `GENERATED` is."""

_KNOWN = [
    _column("known_e_above_hull", pa.float64(), "eV/atom, of the source; null: not given"),
    _column("known_formation_energy", pa.float64(), "eV/atom, likewise"),
]

SAMPLES_WITH_ENERGIES = _extend(list(IMPORTED), _KNOWN)
"""generated/{external}/shard-*.parquet: of a row that names columns with known energies."""

TRAJECTORIES = _extend(
    _CRYSTAL,
    [
        _column("step", pa.int32(), "number of the integration step", nullable=False),
        _column("time", pa.float64(), "t, 0 to 1", nullable=False),
    ],
)
"""trajectories/{method}/shard-*.parquet: `id` is that of the generated row."""

SELECTED = pa.schema(
    [
        _ID,
        _FORMULA,
        _column("matched_id", pa.string(), "the training crystal or earlier draft it matches"),
        *_OUTCOME,
    ]
)
"""selected/{method}.parquet; a crystal with the status known or repeated is not relaxed."""

RELAXED = _extend(
    _CRYSTAL,
    [
        _FORMULA,
        _column("potential", pa.string(), "whose energies, and how the crystals were relaxed"),
        _column("initial_energy_per_atom", pa.float64(), "eV/atom, as generated"),
        _column("final_energy_per_atom", pa.float64(), "eV/atom, as relaxed"),
        _column("delta_energy_per_atom", pa.float64(), "eV/atom that the relaxation gained"),
        _column("delta_energy_per_cell", pa.float64(), "eV that the relaxation gained"),
        _column("max_force", pa.float64(), "eV/angstrom, of the atoms, at the end"),
        _column("num_steps", pa.int32(), "relaxation steps"),
        _column(
            "converged",
            pa.bool_(),
            "whether forces on atoms and cell fell below prerelax.max_force",
        ),
    ],
    _OUTCOME,
)
"""relaxed/{method}/shard-*.parquet: after the potential's relaxation; same ids."""

TIMES = pa.schema([_ID, _column("seconds", pa.float64(), "wall time of the crystal")])
"""relaxed/{method}/_shard-*.parquet.times: wall time of each crystal, in a file of its own, since
the bytes of the table repeat from run to run and times do not."""

HULL_ENTRIES = pa.schema(
    [
        _column("entry_id", pa.string(), "the source's", nullable=False),
        _column("formula", pa.string(), "of the entry's cell", nullable=False),
        _column("num_atoms", pa.int32(), "in the entry's cell", nullable=False),
        _column("energy_per_atom", pa.float64(), "eV/atom", nullable=False),
        _column("kind", pa.string(), "potential or dft, one in a file", nullable=False),
        _column("source", pa.string(), "whose energy, relaxation or correction", nullable=False),
        _column("converged", pa.bool_(), "false: the energy is an upper bound; null: not known"),
    ]
)
"""hull/{kind}.parquet: the entries of a reference hull."""

STABILITY = pa.schema(
    [
        _ID,
        _FORMULA,
        _column("num_elements", pa.int32(), "distinct elements"),
        _column("energy_per_atom", pa.float64(), "eV/atom"),
        _column("energy_source", pa.string(), "whose energy, relaxation or correction"),
        _column("hull_source", pa.string(), "the same of the hull"),
        _column("e_above_hull", pa.float64(), "eV/atom; negative: below the reference hull"),
        _column("check_e_above_hull", pa.float64(), "eV/atom by potential.check on its own hull"),
        _column("check_energy_source", pa.string(), "whose energy that is"),
        _column("hull_compounds", pa.int32(), "entries of compounds among the crystal's elements"),
        _column("formation_energy_per_atom", pa.float64(), "eV/atom, from the hull's elements"),
        _column("stable", pa.bool_(), "by stability.stable_below and min_elements"),
        _column("metastable", pa.bool_(), "by stability.metastable_below and min_elements"),
        *_OUTCOME,
    ]
)
"""stability/{kind}/{method}.parquet; one row per generated crystal."""

_DFT_CHOICE = [
    _column("taken_as", pa.string(), "selected, candidate or control; null: no run"),
    _column("inclusion_probability", pa.float64(), "of being taken; null: unknown, or no crystal"),
    _column("leads_class", pa.bool_(), "novel and, of its class, nearest to the hull (potential)"),
]
"""Why dft_inputs takes a crystal; leads_class is null for selections other than candidates."""

DFT_MANIFEST = pa.schema(
    [
        _ID,
        _column("path", pa.string(), "the run's folder, relative to the manifest's"),
        _FORMULA,
        _column("input_set", pa.string(), "dft_inputs.input_set, or dft.code's own set"),
        _column("input_set_version", pa.string(), "of pymatgen, which defines the set"),
        _column("potcar_symbols", pa.list_(pa.string()), "pseudopotentials, in POSCAR's order"),
        _column(
            "structure_hash", pa.string(), "SHA-256 of the POSCAR (or gpaw.json, pw.in) as written"
        ),
        *_DFT_CHOICE,
        _column("reason", pa.string(), "why the crystal is computed or not"),
        *_OUTCOME,
    ]
)
"""dft_inputs/{method}/manifest.parquet; status says why a crystal has no folder."""

DFT_RESULTS = _extend(
    _CRYSTAL,
    [
        _column("path", pa.string(), "the run's folder, relative to the manifest's"),
        _FORMULA,
        _column("raw_energy_per_atom", pa.float64(), "eV/atom, the code's"),
        _column("corrected_energy_per_atom", pa.float64(), "eV/atom, by correction_scheme"),
        _column("correction_scheme", pa.string(), "dft_collect.correction_scheme"),
        _column("run_type", pa.string(), "of the run, e.g. GGA or GGA+U"),
        _column("converged_electronic", pa.bool_(), "the last ionic step's electronic loop"),
        _column("converged_ionic", pa.bool_(), "false: the energy is an upper bound"),
        _column("num_steps", pa.int32(), "whole ionic steps"),
    ],
    _DFT_CHOICE,
    _OUTCOME,
)
"""dft/{method}.parquet; one row per manifest row, with the DFT-relaxed crystal."""

FINGERPRINTS = pa.schema(
    [
        _ID,
        _column("structure_fingerprint", pa.list_(pa.float64()), "CrystalNN's ops, 61 numbers"),
        _column("composition_fingerprint", pa.list_(pa.float64()), "Magpie's, 132, not scaled"),
        _column("density", pa.float64(), "g/cm3"),
        _column("num_elements", pa.int32(), "distinct elements"),
        *_OUTCOME,
    ]
)
"""fingerprints/test.parquet and fingerprints/{method}.parquet, before any relaxation."""

METRICS_PER_CRYSTAL = pa.schema(
    [
        _ID,
        _SOURCE_NAME,
        _FORMULA,
        _column("generated", pa.bool_(), "there is a crystal", nullable=False),
        _column("num_elements", pa.int32(), "distinct elements"),
        _column("structurally_valid", pa.bool_(), "no atoms too close", nullable=False),
        _column("compositionally_valid", pa.bool_(), "charges can balance", nullable=False),
        _column("fingerprinted", pa.bool_(), "it has both fingerprints", nullable=False),
        _column("covered", pa.bool_(), "near some of the test split's", nullable=False),
        _column("relaxed", pa.bool_(), "there is a relaxed crystal", nullable=False),
        _column("e_above_hull", pa.float64(), "eV/atom"),
        _column("check_e_above_hull", pa.float64(), "eV/atom by potential.check"),
        _column("hull_compounds", pa.int32(), "as in the stability table"),
        _column("stable", pa.bool_(), "as in the stability table", nullable=False),
        _column("metastable", pa.bool_(), "as in the stability table", nullable=False),
        _column("duplicate_group", pa.string(), "smallest id of its class of matching crystals"),
        _column("unique", pa.bool_(), "first of its class", nullable=False),
        _column("novel", pa.bool_(), "matches no training crystal", nullable=False),
        _column("matched_material_id", pa.string(), "the training crystal that it matches"),
        _column("sun", pa.bool_(), "stable, unique and novel", nullable=False),
        _column("matches_relaxed", pa.bool_(), "generated and relaxed match", nullable=False),
        _column("rmsd_to_relaxed", pa.float64(), "in units of (V/N)^(1/3)"),
        _column(
            "matches_relaxed_loose",
            pa.bool_(),
            "the same by the tolerances of the authors' code",
            nullable=False,
        ),
        _column("rmsd_to_relaxed_loose", pa.float64(), "the same by those tolerances"),
        _column("error", pa.string(), "why pymatgen could not compare the crystal"),
    ]
)
"""metrics/{kind}/{method}.parquet: the flags behind every rate, one row per generated crystal."""

_ANSWERED = [
    _ASKED,
    _column("got", pa.map_(pa.string(), pa.string()), "the same measured, where it can be"),
    _column("met", pa.map_(pa.string(), pa.bool_()), "whether each measured one is met"),
    _column("all_met", pa.bool_(), "whether all are; null if none can be measured"),
]

REQUESTED_METRICS = _extend(list(METRICS_PER_CRYSTAL), _ANSWERED)
"""metrics/{kind}/{method}.parquet: of a method whose base has conditions."""

METRICS_WITH_ENERGIES = _extend(
    list(METRICS_PER_CRYSTAL),
    [
        _column("formation_energy_per_atom", pa.float64(), "as in the stability table"),
        *_KNOWN,
        _column("known_e_above_train", pa.float64(), "eV/atom, by known formation energies alone"),
    ],
)
"""metrics/{kind}/{external}.parquet: of a row that names columns with known energies."""

ON_REQUEST = _extend(
    _CRYSTAL,
    [
        _column("rank", pa.int32(), "by energy above the hull, from 1; null: no relaxed crystal"),
        _column("cif", pa.string(), "file of the relaxed crystal, relative to the table"),
        _FORMULA,
        _column("reduced_formula", pa.string(), "of the relaxed crystal"),
        _column("space_group", pa.string(), "of the relaxed crystal, by spglib"),
        *_ANSWERED,
        _column("energy_per_atom", pa.float64(), "eV/atom, as relaxed"),
        _column("e_above_hull", pa.float64(), "eV/atom; negative: below the reference hull"),
        _column("formation_energy_per_atom", pa.float64(), "eV/atom, from the hull's elements"),
        _column("check_e_above_hull", pa.float64(), "eV/atom, by potential.check"),
        _column("hull_compounds", pa.int32(), "as in the stability table"),
        _column("max_force", pa.float64(), "eV/angstrom, of the atoms, at the end"),
        _column(
            "converged",
            pa.bool_(),
            "whether forces on atoms and cell fell below prerelax.max_force",
        ),
        _column("stable", pa.bool_(), "as in the stability table"),
        _column("metastable", pa.bool_(), "as in the stability table"),
        _column("structurally_valid", pa.bool_(), "no atoms too close, before the relaxation"),
        _column("compositionally_valid", pa.bool_(), "charges can balance"),
        _column("unique", pa.bool_(), "first of its class of matching crystals"),
        _column("duplicate_group", pa.string(), "smallest id of its class"),
        _column("novel", pa.bool_(), "matches no training crystal"),
        _column("matched_material_id", pa.string(), "the training crystal that it matches"),
        _column("sun", pa.bool_(), "stable, unique and novel"),
        _column("attempts", pa.int32(), "drafts made"),
        _column("prompt", pa.string(), "what the language model was given"),
        _SOURCE_NAME,
    ],
    _OUTCOME,
)
"""crystals.parquet of `flowllm generate`: relaxed crystals, by energy above the hull."""

CSP_FORMAT = 2
"""Raised when a key of csp/{method}.json changes its name or meaning."""

CSP = pa.schema(
    [
        _column("material_id", pa.string(), "of the test crystal", nullable=False),
        _FORMULA,
        _column("attempts", pa.int32(), "predictions of it", nullable=False),
        _column("matches", pa.int32(), "how many of them are valid and match it", nullable=False),
        _column("rmsd_first", pa.float64(), "of the first, in units of (V/N)^(1/3), if it matches"),
        _column("rmsd_best", pa.float64(), "of the nearest, likewise"),
        _column("rmsd_any_first", pa.float64(), "of the nearest first prediction of any crystal"),
        _column("rmsd_any", pa.float64(), "of the nearest prediction of any test crystal"),
        _column("compositionally_valid", pa.bool_(), "charges can balance", nullable=False),
        _column("error", pa.string(), "why pymatgen could not compare an attempt"),
    ]
)
"""csp/{method}.parquet: crystal structure prediction, one row per test crystal."""
