rule refine:
    input:
        base=base_shard,
        model=f"{RUN}/rfm/model",
    output:
        f"{RUN}/generated/{{setting}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/refine/{{setting}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/refine/{{setting}}-{{shard}}.tsv"
    wildcard_constraints:
        setting="|".join(SETTINGS),
    conda:
        "../../envs/rfm.yaml"
    threads: cpus("refine")
    resources:
        gpu=gpus("refine"),
        mem_mb=mem_mb("refine"),
        runtime=runtime("refine"),
    params:
        settings=settings_of("refine", row="setting"),
    message:
        "Refining {wildcards.setting}, shard {wildcards.shard}"
    shell:
        "python -m flowllm refine "
        "--base {input.base:q} --model {input.model:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
