"""What the workflow needs to know about SLURM: the site, its limits, and jobs that cannot start."""
