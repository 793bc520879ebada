rule sample_base:
    input:
        model=f"{RUN}/llm/model",
        wishes=wishes_file,
    output:
        f"{RUN}/base/{{base}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/sample_base/{{base}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/sample_base/{{base}}-{{shard}}.tsv"
    conda:
        "../../envs/vllm.yaml"
    threads: cpus("sample_base")
    resources:
        **requested("sample_base"),
        mem_mb=mem_mb("sample_base"),
        runtime=runtime("sample_base"),
    params:
        settings=settings_of("sample_base", row="base"),
        draws=sample_draws,
    message:
        "Sampling crystals at {wildcards.base}, shard {wildcards.shard}"
    shell:
        "python -m flowllm sample_base "
        "--model {input.model:q} {params.draws} --gpus {resources.gpu} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
