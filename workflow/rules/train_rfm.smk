rule train_rfm:
    input:
        pairs=expand(
            f"{RUN}/pairs/train/shard-{{shard}}.parquet", shard=PAIR_SHARDS["train"]
        ),
        val_pairs=expand(
            f"{RUN}/pairs/val/shard-{{shard}}.parquet", shard=PAIR_SHARDS["val"]
        ),
        start=flow_start,
    output:
        directory(f"{RUN}/rfm/{{flow}}"),
    log:
        f"{RUN}/logs/train_rfm/{{flow}}.log",
    benchmark:
        f"{RUN}/benchmarks/train_rfm/{{flow}}.tsv"
    conda:
        "../../envs/rfm.yaml"
    threads: cpus("train_rfm")
    resources:
        **requested("train_rfm"),
        mem_mb=mem_mb("train_rfm"),
        runtime=runtime("train_rfm"),
    params:
        settings=settings_of("train_rfm", row="flow"),
        pairs=options(**{"pairs": "pairs", "val-pairs": "val_pairs"}),
    message:
        "Training the velocity network of flow {wildcards.flow}"
    shell:
        "python -m flowllm train_rfm "
        "{params.pairs:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
