rule prerelax:
    input:
        f"{RUN}/generated/{{setting}}/shard-{{shard}}.parquet",
    output:
        f"{RUN}/relaxed/{{setting}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/prerelax/{{setting}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/prerelax/{{setting}}-{{shard}}.tsv"
    wildcard_constraints:
        setting="|".join([*ROWS, *CSP_SETTINGS]),
    conda:
        "../../envs/relax.yaml"
    threads: cpus("prerelax")
    resources:
        gpu=gpus("prerelax"),
        mem_mb=mem_mb("prerelax"),
        runtime=runtime("prerelax"),
    params:
        settings=settings_of("prerelax"),
    message:
        "Relaxing {wildcards.setting}, shard {wildcards.shard}"
    shell:
        "python -m flowllm prerelax "
        "--generated {input:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
