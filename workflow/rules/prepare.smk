rule prepare:
    input:
        f"{RUN}/download/manifest.json",
    output:
        f"{RUN}/crystals/train.parquet",
        f"{RUN}/crystals/val.parquet",
        f"{RUN}/crystals/test.parquet",
        f"{RUN}/crystals/rejected.parquet",
    log:
        f"{RUN}/logs/prepare.log",
    benchmark:
        f"{RUN}/benchmarks/prepare.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("prepare")
    resources:
        **requested("prepare"),
        mem_mb=mem_mb("prepare"),
        runtime=runtime("prepare"),
    params:
        settings=settings_of("prepare"),
        out=output_folder,
    message:
        "Preparing the crystals"
    shell:
        "python -m flowllm prepare "
        "--manifest {input:q} --out {params.out:q} --workers {threads} "
        "--settings {params.settings:q} --log {log:q}"
