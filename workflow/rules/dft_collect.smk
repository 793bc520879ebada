rule dft_collect:
    input:
        manifest=f"{RUN}/dft_inputs/{{method}}/manifest.parquet",
        runs=finished_runs,
    output:
        f"{RUN}/dft/{{method}}.parquet",
    log:
        f"{RUN}/logs/dft_collect/{{method}}.log",
    benchmark:
        f"{RUN}/benchmarks/dft_collect/{{method}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("dft_collect")
    resources:
        **requested("dft_collect"),
        mem_mb=mem_mb("dft_collect"),
        runtime=runtime("dft_collect"),
    params:
        settings=settings_of("dft_collect"),
    message:
        "Collecting DFT results of {wildcards.method}"
    shell:
        "python -m flowllm dft_collect "
        "--manifest {input.manifest:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
