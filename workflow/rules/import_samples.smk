rule import_samples:
    input:
        external_files,
    output:
        base=f"{RUN}/base/{{external}}/shard-{{shard}}.parquet",
        generated=f"{RUN}/generated/{{external}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/import_samples/{{external}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/import_samples/{{external}}-{{shard}}.tsv"
    conda:
        "../../envs/relax.yaml"
    threads: cpus("import_samples")
    resources:
        **requested("import_samples"),
        mem_mb=mem_mb("import_samples"),
        runtime=runtime("import_samples"),
    params:
        settings=settings_of("import_samples", row="external"),
        shard=lambda wildcards: int(wildcards.shard),
    message:
        "Reading the samples of {wildcards.external}, shard {wildcards.shard}"
    shell:
        "python -m flowllm import_samples "
        "--shard {params.shard} --base {output.base:q} --out {output.generated:q} "
        "--settings {params.settings:q} --log {log:q}"
