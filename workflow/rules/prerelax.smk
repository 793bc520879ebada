rule prerelax:
    input:
        generated=f"{RUN}/generated/{{method}}/shard-{{shard}}.parquet",
        selection=selection_of,
    output:
        f"{RUN}/relaxed/{{method}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/prerelax/{{method}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/prerelax/{{method}}-{{shard}}.tsv"
    wildcard_constraints:
        method="|".join([*ROWS, *CSP_METHODS]),
    conda:
        "../../envs/relax.yaml"
    threads: cpus("prerelax")
    resources:
        **requested("prerelax"),
        mem_mb=mem_mb("prerelax"),
        runtime=runtime("prerelax"),
    params:
        settings=settings_of("prerelax"),
        selection=options(selection="selection"),
    message:
        "Relaxing {wildcards.method}, shard {wildcards.shard}"
    shell:
        "python -m flowllm prerelax "
        "--generated {input.generated:q} {params.selection:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
