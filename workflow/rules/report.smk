rule report:
    input:
        metrics=report_metrics,
        read=lambda wildcards: report_inputs(wildcards.report),
        csp=expand(f"{RUN}/csp/{{method}}.json", method=CSP_METHODS),
    output:
        page=report(
            f"{RUN}/{{report}}/index.html",
            caption="../captions/page.rst",
            category="Report",
        ),
        figures=report(
            directory(f"{RUN}/{{report}}/figures"),
            patterns=["{name}.svg"],
            caption="../captions/figure.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
        tables=report(
            directory(f"{RUN}/{{report}}/tables"),
            patterns=["{name}.csv"],
            caption="../captions/table.rst",
            category="Tables",
            labels={"table": "{name}"},
        ),
    log:
        f"{RUN}/logs/{{report}}.log",
    benchmark:
        f"{RUN}/benchmarks/{{report}}.tsv"
    wildcard_constraints:
        report="report|report_dft",
    conda:
        "../../envs/core.yaml"
    threads: cpus("report")
    resources:
        **requested("report"),
        mem_mb=mem_mb("report"),
        runtime=runtime("report"),
    params:
        settings=settings_of("report"),
        results=options(metrics="metrics", csp="csp"),
        run_dir=lambda wildcards: RUN,
        shards=lambda wildcards: [
            f"--shards={folder}={len(shards)}"
            for folder, shards in (REPORT_SHARDS | PREDICTED_SHARDS).items()
        ],
    message:
        "Writing the {wildcards.report}"
    shell:
        "python -m flowllm report {params.results:q} {params.shards:q} --run-dir {params.run_dir:q} "
        "--out {output.page:q} --settings {params.settings:q} --log {log:q}"
