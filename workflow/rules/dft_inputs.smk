rule dft_inputs:
    input:
        relaxed=sample_shards("relaxed"),
        stability=f"{RUN}/stability/potential/{{method}}.parquet",
        per_crystal=per_crystal_metrics,
    output:
        f"{RUN}/dft_inputs/{{method}}/manifest.parquet",
    log:
        f"{RUN}/logs/dft_inputs/{{method}}.log",
    benchmark:
        f"{RUN}/benchmarks/dft_inputs/{{method}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("dft_inputs")
    resources:
        **requested("dft_inputs"),
        mem_mb=mem_mb("dft_inputs"),
        runtime=runtime("dft_inputs"),
    params:
        settings=settings_of("dft_inputs"),
        relaxed=options(**{"relaxed": "relaxed", "per-crystal": "per_crystal"}),
    message:
        "Writing DFT inputs of {wildcards.method}"
    shell:
        "python -m flowllm dft_inputs "
        "{params.relaxed:q} --stability {input.stability:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
