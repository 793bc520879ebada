rule match_csp:
    input:
        base=sample_shards("base"),
        generated=sample_shards("generated"),
        crystals=f"{RUN}/crystals/test.parquet",
    output:
        json=f"{RUN}/csp/{{method}}.json",
        crystals=f"{RUN}/csp/{{method}}.parquet",
    log:
        f"{RUN}/logs/match_csp/{{method}}.log",
    benchmark:
        f"{RUN}/benchmarks/match_csp/{{method}}.tsv"
    wildcard_constraints:
        method="|".join(CSP_METHODS) or NO_NAME,
    conda:
        "../../envs/core.yaml"
    threads: cpus("match_csp")
    resources:
        **requested("match_csp"),
        mem_mb=mem_mb("match_csp"),
        runtime=runtime("match_csp"),
    params:
        settings=settings_of("match_csp"),
        shards=options(base="base", generated="generated"),
    message:
        "Comparing the predictions of {wildcards.method}"
    shell:
        "python -m flowllm match_csp "
        "{params.shards:q} --crystals {input.crystals:q} --workers {threads} --out {output.json:q} "
        "--settings {params.settings:q} --log {log:q}"
