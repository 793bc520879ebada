rule select:
    input:
        generated=sample_shards("generated"),
        crystals=[f"{RUN}/crystals/train.parquet", *known_crystals()],
    output:
        f"{RUN}/selected/{{method}}.parquet",
    log:
        f"{RUN}/logs/select/{{method}}.log",
    benchmark:
        f"{RUN}/benchmarks/select/{{method}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("select")
    resources:
        **requested("select"),
        mem_mb=mem_mb("select"),
        runtime=runtime("select"),
    params:
        settings=settings_of("select"),
        tables=options(generated="generated", crystals="crystals"),
    message:
        "Selecting the crystals of {wildcards.method} that are relaxed"
    shell:
        "python -m flowllm select "
        "{params.tables:q} --workers {threads} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
