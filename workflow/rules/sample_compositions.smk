rule sample_compositions:
    input:
        f"{RUN}/crystals/train.parquet",
    output:
        f"{RUN}/base/{TRAIN_COMPOSITIONS}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/sample_compositions/{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/sample_compositions/{{shard}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("sample_compositions")
    resources:
        **requested("sample_compositions"),
        mem_mb=mem_mb("sample_compositions"),
        runtime=runtime("sample_compositions"),
    params:
        settings=settings_of("sample_compositions"),
        draws=sample_draws,
    message:
        "Drawing base crystals of training compositions, shard {wildcards.shard}"
    shell:
        "python -m flowllm sample_compositions "
        "--crystals {input:q} {params.draws} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
