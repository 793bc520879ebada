rule second_energies:
    input:
        relaxed=evaluated_shards,
        hull=evaluated_hull,
    output:
        f"{RUN}/second_energies/{{crystals}}.parquet",
    log:
        f"{RUN}/logs/second_energies/{{crystals}}.log",
    benchmark:
        f"{RUN}/benchmarks/second_energies/{{crystals}}.tsv"
    wildcard_constraints:
        crystals="|".join(["hull", *ROWS]),
    conda:
        "../../envs/relax.yaml"
    threads: cpus("second_energies")
    resources:
        **requested("second_energies"),
        mem_mb=mem_mb("second_energies"),
        runtime=runtime("second_energies"),
    params:
        settings=settings_of("second_energies"),
        crystals=options(relaxed="relaxed", hull="hull"),
    message:
        "Evaluating {wildcards.crystals} with the second potential"
    shell:
        "python -m flowllm second_energies {params.crystals:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
