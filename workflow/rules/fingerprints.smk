rule fingerprints:
    input:
        crystals=fingerprinted,
    output:
        f"{RUN}/fingerprints/{{sample}}.parquet",
    log:
        f"{RUN}/logs/fingerprints/{{sample}}.log",
    benchmark:
        f"{RUN}/benchmarks/fingerprints/{{sample}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: cpus("fingerprints")
    resources:
        **requested("fingerprints"),
        mem_mb=mem_mb("fingerprints"),
        runtime=runtime("fingerprints"),
    params:
        settings=settings_of("fingerprints"),
        crystals=options(crystals="crystals"),
    message:
        "Fingerprints of {wildcards.sample}"
    shell:
        "python -m flowllm fingerprints "
        "{params.crystals:q} --workers {threads} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
