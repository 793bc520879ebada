rule dft_hull:
    input:
        dft_entries,
    output:
        f"{RUN}/hull/dft.parquet",
    log:
        f"{RUN}/logs/dft_hull.log",
    benchmark:
        f"{RUN}/benchmarks/dft_hull.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("dft_hull")
    resources:
        **requested("dft_hull"),
        mem_mb=mem_mb("dft_hull"),
        runtime=runtime("dft_hull"),
    params:
        settings=settings_of("dft_hull"),
    message:
        "Taking the DFT reference entries"
    shell:
        "python -m flowllm dft_hull "
        "--out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
