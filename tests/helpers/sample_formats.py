"""What several files share of the tests `test_external`."""

import argparse
import csv
import gzip
import json
from pathlib import Path

import ase.io
import numpy as np
import torch

from crystals import fcc, perovskite, rattled, rocksalt
from flowllm.data.external import read_samples

CRYSTALS = [rocksalt(), rattled(perovskite(), 0.1, 3), fcc()]


def write_cifs(path):
    path.mkdir()
    for index, crystal in enumerate(CRYSTALS):
        (path / f"{index:03d}.cif").write_text(crystal.to_structure().to(fmt="cif"))


def write_csv_of(convert, column):
    def write(path):
        with path.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["material_id", column])
            writer.writerows([i, convert(one.to_structure())] for i, one in enumerate(CRYSTALS))

    return write


def write_xyz(path):
    structures = [crystal.to_structure() for crystal in CRYSTALS]
    ase.io.write(path, [structure.to_ase_atoms() for structure in structures], format="extxyz")


def write_json(path):
    path.write_text(json.dumps([crystal.to_structure().as_dict() for crystal in CRYSTALS]))


def write_json_of_entries(path):
    entries = {f"e{i}": {"structure": c.to_structure().as_dict()} for i, c in enumerate(CRYSTALS)}
    with gzip.open(path, "wt") as handle:
        json.dump(entries, handle)


def tensors(leading_axis):
    values = {
        "atom_types": np.concatenate([one.atomic_numbers for one in CRYSTALS]).astype(np.int64),
        "frac_coords": np.concatenate([one.frac_coords for one in CRYSTALS]),
        "lengths": np.stack([one.lengths for one in CRYSTALS]),
        "angles": np.stack([one.angles for one in CRYSTALS]),
        "num_atoms": np.array([one.num_atoms for one in CRYSTALS]),
    }
    return {key: torch.from_numpy(v[None] if leading_axis else v) for key, v in values.items()}


def write_pt(path):
    # As CDVAE's evaluate.py: a leading axis for the evaluations, options beside the tensors.
    torch.save(tensors(True) | {"eval_setting": argparse.Namespace(num_evals=1)}, path)


def write_flat_pt(path):
    torch.save(tensors(False), path)


def write_pt_of_numpy(path):
    values = {key: tensor.numpy() for key, tensor in tensors(True).items()}
    values["frac_coords"] = np.asfortranarray(values["frac_coords"].astype(">f8"))
    options = argparse.Namespace(model_path=Path("models/x"))
    torch.save(values | {"eval_setting": options, "time": np.float64(1)}, path)


def write_pt_of_scalars(path):
    values = {key: tensor.squeeze(0) for key, tensor in tensors(True).items()}
    torch.save(values | {"num_atoms": [np.int64(one.num_atoms) for one in CRYSTALS]}, path)


def write_pt_of_parameters(path):
    values = tensors(False)
    values["lengths"] = torch.nn.Parameter(values["lengths"])
    # Halves and quarters, and what the test may be off by, are exact enough in 8 bits.
    values["angles"] = values["angles"].bfloat16()
    torch.save(values, path)


def write_pt_of_lattices(path):
    values = {key: v for key, v in tensors(True).items() if key not in ("lengths", "angles")}
    matrices = np.stack([one.to_structure().lattice.matrix for one in CRYSTALS])
    torch.save(values | {"lattices": torch.from_numpy(matrices[None])}, path)


def write_named_json(path):
    structures = [crystal.to_structure().as_dict() for crystal in CRYSTALS]
    path.write_text(json.dumps({"structures": structures}))


def write_json_of(convert):
    def write(path):
        path.write_text(json.dumps([convert(one.to_structure()) for one in CRYSTALS]))

    return write


def write_upper_case_cifs(path):
    write_cifs(path)
    (path / "001.cif").rename(path / "001.CIF")


def write_csv_of_excel(path):
    write_csv_of(lambda structure: structure.to(fmt="cif"), "CIF")(path)
    path.write_text(path.read_text().replace("material_id,CIF", "CIF,material_id"))
    rows = list(csv.reader(path.open(newline="")))
    with path.open("w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle).writerows([rows[0], *([cif, name] for name, cif in rows[1:])])


def write_cif_of_blocks(path):
    path.mkdir()
    text = "data_global\n_audit_creation_method 'several'\n"
    text += "".join(one.to_structure().to(fmt="cif") for one in CRYSTALS)
    for one in CRYSTALS:  # blocks of one name, of which pymatgen keeps only the last
        text = text.replace(f"data_{one.to_structure().reduced_formula}", "data_sample")
    (path / "all.cif").write_text(text)


FORMATS = {
    "cifs": write_cifs,
    "cif.csv": write_csv_of(lambda structure: structure.to(fmt="cif"), "cif"),
    "json.csv": write_csv_of(lambda one: json.dumps(one.as_dict()), "structure"),
    "all.extxyz": write_xyz,
    "all.json": write_json,
    "entries.json.gz": write_json_of_entries,
    "eval_gen.pt": write_pt,
    "flat.pt": write_flat_pt,
    "numpy.pt": write_pt_of_numpy,
    "scalars.pt": write_pt_of_scalars,
    "parameters.pt": write_pt_of_parameters,
    "lattices.pt": write_pt_of_lattices,
    "named.json": write_named_json,
    "cif.json": write_json_of(lambda structure: structure.to(fmt="cif")),
    "records.json": write_json_of(lambda structure: {"id": 1, "cif": structure.to(fmt="cif")}),
    "CIFS": write_upper_case_cifs,
    "blocks": write_cif_of_blocks,
    "excel.csv": write_csv_of_excel,
}
"""How `CRYSTALS` are written, by the name of the file."""


def outcomes(path):
    """Formula or error of each sample."""
    found = []
    for parse in read_samples(path):
        try:
            found.append(parse().formula)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found
