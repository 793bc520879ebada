# Reads the whole configuration, so it runs again after each change of it. Its output is `ancient`
# to all others and `update`d in place: a check that runs or fails never makes another job run again.
rule check:
    output:
        update(f"{RUN}/check.json"),
    log:
        f"{RUN}/logs/check.log",
    benchmark:
        f"{RUN}/benchmarks/check.tsv"
    conda:
        "../../envs/llm.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        config=lambda wildcards: json.dumps(CONFIG.model_dump(mode="json")),
        # With an environment for each stage, this one's packages say nothing of the others'.
        packages="--no-packages" if OWN_ENVIRONMENTS else "--packages",
    message:
        "Checking configuration, data and base model"
    shell:
        "python -m flowllm check --whole {params.config:q} {params.packages} "
        "--out {output:q} --log {log:q}"
