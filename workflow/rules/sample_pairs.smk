rule sample_pairs:
    input:
        model=f"{RUN}/llm/model",
        crystals=f"{RUN}/crystals/{{split}}.parquet",
    output:
        f"{RUN}/pairs/{{split}}/shard-{{shard}}.parquet",
    log:
        f"{RUN}/logs/sample_pairs/{{split}}-{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/sample_pairs/{{split}}-{{shard}}.tsv"
    conda:
        "../../envs/vllm.yaml"
    threads: cpus("sample_pairs")
    resources:
        **requested("sample_pairs"),
        mem_mb=mem_mb("sample_pairs"),
        runtime=runtime("sample_pairs"),
    params:
        settings=settings_of("sample_pairs"),
        draws=pair_draws,
    message:
        "Sampling pairs, {wildcards.split} shard {wildcards.shard}"
    shell:
        "python -m flowllm sample_pairs "
        "--model {input.model:q} --crystals {input.crystals:q} --split {wildcards.split} "
        "{params.draws} --gpus {resources.gpu} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
