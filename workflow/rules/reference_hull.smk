rule reference_hull:
    input:
        crystals=f"{RUN}/crystals/train.parquet",
        source=hull_source(),
    output:
        f"{RUN}/hull/potential.parquet",
    log:
        f"{RUN}/logs/reference_hull.log",
    benchmark:
        f"{RUN}/benchmarks/reference_hull.tsv"
    conda:
        "../../envs/relax.yaml"
    threads: cpus("reference_hull")
    resources:
        **requested("reference_hull"),
        mem_mb=mem_mb("reference_hull"),
        runtime=runtime("reference_hull"),
    params:
        settings=settings_of("reference_hull"),
    message:
        "Making the reference hull"
    shell:
        "python -m flowllm reference_hull "
        "--crystals {input.crystals:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
