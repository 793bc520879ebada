rule sample_csp:
    input:
        model=f"{RUN}/llm/model",
        crystals=f"{RUN}/crystals/test.parquet",
    output:
        f"{RUN}/base/{{csp_base}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/sample_csp/{{csp_base}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/sample_csp/{{csp_base}}-{{shard}}.tsv"
    conda:
        "../../envs/vllm.yaml"
    threads: cpus("sample_csp")
    resources:
        **requested("sample_csp"),
        mem_mb=mem_mb("sample_csp"),
        runtime=runtime("sample_csp"),
    params:
        settings=settings_of("sample_csp", row="csp_base"),
        draws=csp_draws,
    message:
        "Predicting crystals at {wildcards.csp_base}, shard {wildcards.shard}"
    shell:
        "python -m flowllm sample_csp "
        "--model {input.model:q} --crystals {input.crystals:q} {params.draws} --gpus {resources.gpu} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
