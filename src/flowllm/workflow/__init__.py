"""What the workflow adds to Snakemake and to its SLURM plugin."""
