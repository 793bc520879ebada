rule download:
    input:
        source_files,
    output:
        f"{RUN}/download/manifest.json",
    log:
        f"{RUN}/logs/download.log",
    benchmark:
        f"{RUN}/benchmarks/download.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("download")
    resources:
        **requested("download"),
        mem_mb=mem_mb("download"),
        runtime=runtime("download"),
    params:
        settings=settings_of("download"),
    message:
        "Fetching the raw crystals"
    shell:
        "python -m flowllm download "
        "--out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
