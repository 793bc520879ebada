rule stability:
    input:
        energies=energies,
        hull=f"{RUN}/hull/{{kind}}.parquet",
        second=second_energies_of("{method}"),
        second_hull=second_energies_of("hull"),
    output:
        f"{RUN}/stability/{{kind}}/{{method}}.parquet",
    log:
        f"{RUN}/logs/stability/{{kind}}-{{method}}.log",
    benchmark:
        f"{RUN}/benchmarks/stability/{{kind}}-{{method}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("stability")
    resources:
        **requested("stability"),
        mem_mb=mem_mb("stability"),
        runtime=runtime("stability"),
    params:
        settings=settings_of("stability"),
        energies=options(energies="energies"),
        second=options(second="second", **{"second-hull": "second_hull"}),
    message:
        "E_above_hull of {wildcards.method}, {wildcards.kind}"
    shell:
        "python -m flowllm stability "
        "{params.energies:q} --hull {input.hull:q} {params.second:q} --kind {wildcards.kind} "
        "--out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
