rule invariance:
    input:
        model=f"{RUN}/llm/model",
        crystals=f"{RUN}/crystals/val.parquet",
    output:
        f"{RUN}/llm/invariance.parquet",
    log:
        f"{RUN}/logs/invariance.log",
    benchmark:
        f"{RUN}/benchmarks/invariance.tsv"
    conda:
        "../../envs/llm.yaml"
    threads: cpus("invariance")
    resources:
        **requested("invariance"),
        mem_mb=mem_mb("invariance"),
        runtime=runtime("invariance"),
    params:
        settings=settings_of("invariance"),
    message:
        "Measuring the language model's invariance"
    shell:
        "python -m flowllm invariance "
        "--model {input.model:q} --crystals {input.crystals:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
