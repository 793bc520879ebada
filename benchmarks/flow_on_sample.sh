#!/bin/bash
# Does the flow move the language model's crystals towards their CHGNet-relaxed state? On the real rows
# of ../shared/data/mp_20_sample (cells of at most eight atoms), from fine-tuning to the report:
#   bash benchmarks/flow_on_sample.sh
# The drafts are SmolLM2's for the formulas of the test split, which neither model saw, as hot as the
# pairs. Goes on where it was stopped; about an hour and a half on two cores.
#
# RESULTS
set -euo pipefail
run=runs/flow_on_sample
snakemake --cores 2 --rerun-incomplete \
    --configfile workflow/config/demo.yaml workflow/config/mp_20_sample.yaml \
    benchmarks/flow_on_sample.yaml -- all $run/relaxed/{drafts,refined}/shard-00000.parquet
python benchmarks/relaxed_gain.py $run drafts refined
