# FlowLLM: one DAG from MP-20 to the paper's tables. Rules only wire; the work is `flowllm STAGE`.
#   snakemake --cores all --configfile workflow/config/demo.yaml     on one machine
#   snakemake --profile slurm                                         on a cluster


configfile: "config.yaml"


report: "workflow/captions/run.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/start.smk"
include: "workflow/rules/download.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/fetch_model.smk"
include: "workflow/rules/finetune_llm.smk"
include: "workflow/rules/merge_adapter.smk"
include: "workflow/rules/invariance.smk"
include: "workflow/rules/sample_pairs.smk"
include: "workflow/rules/train_rfm.smk"
include: "workflow/rules/sample_base.smk"
include: "workflow/rules/sample_compositions.smk"
include: "workflow/rules/sample_csp.smk"
include: "workflow/rules/refine.smk"
include: "workflow/rules/import_samples.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/prerelax.smk"
include: "workflow/rules/reference_hull.smk"
include: "workflow/rules/second_energies.smk"
include: "workflow/rules/dft_hull.smk"
include: "workflow/rules/stability.smk"
include: "workflow/rules/dft_inputs.smk"
include: "workflow/rules/dft_collect.smk"
include: "workflow/rules/fingerprints.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/match_csp.smk"
include: "workflow/rules/report.smk"


wildcard_constraints:
    split="train|val",
    shard=r"\d{5}",
    flow="|".join(FLOWS),
    base="|".join(BASES),
    method="|".join(ROWS),
    external="|".join(EXTERNAL) or NO_NAME,
    csp_base="|".join(CSP_BASES) or NO_NAME,
    sample="|".join(["test", *ROWS]),
    kind="potential|dft",


localrules:
    all,
    all_dft,
    dft_hull,
    download,
    fetch_model,
    report,


onstart:
    PLANNING.check(workflow.dag)
    check_before_jobs()
    record_configuration()


rule all:
    """Everything up to the report with the potential's energies, and the DFT inputs."""
    default_target: True
    input:
        f"{RUN}/report/index.html",
        # Without these Snakemake would not notice that an input of a finished report was deleted.
        PLANNING.without_archived(report_inputs("report")),
        expand(f"{RUN}/dft_inputs/{{method}}/manifest.parquet", method=ROWS),


rule all_dft:
    """The report with DFT energies, after the DFT runs have finished."""
    input:
        f"{RUN}/report_dft/index.html",
        PLANNING.without_archived(report_inputs("report_dft")),
