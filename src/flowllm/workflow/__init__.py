"""Changes of Snakemake itself, one module per subject; `install.py` makes them all.

docs/extending.md lists the changed functions. Those of the SLURM plugin are in `flowllm.slurm`.
"""
