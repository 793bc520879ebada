rule refine:
    input:
        base=base_shard,
        model=flow_model,
    output:
        **TRAJECTORIES,
        generated=f"{RUN}/generated/{{method}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/refine/{{method}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/refine/{{method}}-{{shard}}.tsv"
    wildcard_constraints:
        method="|".join(BASE_OF),
    conda:
        "../../envs/rfm.yaml"
    threads: cpus("refine")
    resources:
        **requested("refine"),
        mem_mb=mem_mb("refine"),
        runtime=runtime("refine"),
    params:
        settings=settings_of("refine", row="method"),
        model=options(model="model"),
        trajectories=lambda wildcards, output: [
            f"--trajectories={output[name]}" for name in TRAJECTORIES
        ],
    message:
        "Refining {wildcards.method}, shard {wildcards.shard}"
    shell:
        "python -m flowllm refine "
        "--base {input.base:q} {params.model:q} --out {output.generated:q} {params.trajectories:q} "
        "--settings {params.settings:q} --log {log:q}"
