rule fetch_model:
    input:
        start=adapter_record,
    output:
        f"{RUN}/llm/base_model.json",
    log:
        f"{RUN}/logs/fetch_model.log",
    benchmark:
        f"{RUN}/benchmarks/fetch_model.tsv"
    conda:
        "../../envs/llm.yaml"
    threads: cpus("fetch_model")
    resources:
        **requested("fetch_model"),
        mem_mb=mem_mb("fetch_model"),
        runtime=runtime("fetch_model"),
    params:
        settings=settings_of("fetch_model"),
        base_model=CONFIG.finetune_llm.base_model,
        start=options(start="start"),
    message:
        "Fetching and checking the base model"
    shell:
        "python -m flowllm fetch_model "
        "--base-model {params.base_model:q} {params.start:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
