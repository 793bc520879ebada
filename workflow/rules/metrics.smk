rule metrics:
    input:
        base=sample_shards("base"),
        generated=sample_shards("generated"),
        relaxed=energies,
        stability=f"{RUN}/stability/{{kind}}/{{method}}.parquet",
        fingerprints=f"{RUN}/fingerprints/{{method}}.parquet",
        test_fingerprints=f"{RUN}/fingerprints/test.parquet",
        crystals=expand(
            f"{RUN}/crystals/{{split}}.parquet", split=["train", "val", "test"]
        ),
        known=known_crystals(),
    output:
        json=f"{RUN}/metrics/{{kind}}/{{method}}.json",
        crystals=f"{RUN}/metrics/{{kind}}/{{method}}.parquet",
    log:
        f"{RUN}/logs/metrics/{{kind}}-{{method}}.log",
    benchmark:
        f"{RUN}/benchmarks/metrics/{{kind}}-{{method}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("metrics")
    resources:
        **requested("metrics"),
        mem_mb=mem_mb("metrics"),
        runtime=runtime("metrics"),
    params:
        settings=settings_of("metrics"),
        shards=options(base="base", generated="generated", relaxed="relaxed"),
        crystals=crystals_folder,
    message:
        "Metrics of {wildcards.method}, {wildcards.kind}"
    shell:
        "python -m flowllm metrics "
        "{params.shards:q} --stability {input.stability:q} --crystals {params.crystals:q} "
        "--fingerprints {input.fingerprints:q} --test-fingerprints {input.test_fingerprints:q} "
        "--workers {threads} --out {output.json:q} "
        "--settings {params.settings:q} --log {log:q}"
