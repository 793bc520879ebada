rule merge_adapter:
    input:
        f"{RUN}/llm/adapter",
    output:
        directory(f"{RUN}/llm/model"),
    log:
        f"{RUN}/logs/merge_adapter.log",
    benchmark:
        f"{RUN}/benchmarks/merge_adapter.tsv"
    conda:
        "../../envs/llm.yaml"
    threads: cpus("merge_adapter")
    resources:
        **requested("merge_adapter"),
        mem_mb=mem_mb("merge_adapter"),
        runtime=runtime("merge_adapter"),
    params:
        settings=settings_of("merge_adapter"),
    message:
        "Merging the adapter into its base model"
    shell:
        "python -m flowllm merge_adapter "
        "--adapter {input:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
