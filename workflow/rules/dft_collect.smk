rule dft_collect:
    input:
        manifest=f"{RUN}/dft_inputs/{{setting}}/manifest.parquet",
        runs=finished_runs,
    output:
        f"{RUN}/dft/{{setting}}.parquet",
    log:
        f"{RUN}/logs/dft_collect/{{setting}}.log",
    benchmark:
        f"{RUN}/benchmarks/dft_collect/{{setting}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("dft_collect")
    resources:
        gpu=gpus("dft_collect"),
        mem_mb=mem_mb("dft_collect"),
        runtime=runtime("dft_collect"),
    params:
        settings=settings_of("dft_collect"),
    message:
        "Collecting DFT results of {wildcards.setting}"
    shell:
        "python -m flowllm dft_collect "
        "--manifest {input.manifest:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
