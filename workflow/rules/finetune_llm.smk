rule finetune_llm:
    input:
        train=f"{RUN}/crystals/train.parquet",
        val=f"{RUN}/crystals/val.parquet",
        base=f"{RUN}/llm/base_model.json",
        start=files_of_start(CONFIG.finetune_llm.start),
    output:
        directory(f"{RUN}/llm/adapter"),
    log:
        f"{RUN}/logs/finetune_llm.log",
    benchmark:
        f"{RUN}/benchmarks/finetune_llm.tsv"
    conda:
        "../../envs/llm.yaml"
    threads: cpus("finetune_llm")
    resources:
        **requested("finetune_llm"),
        mem_mb=mem_mb("finetune_llm"),
        runtime=runtime("finetune_llm"),
    params:
        settings=settings_of("finetune_llm"),
    message:
        "Fine-tuning the language model"
    shell:
        "python -m flowllm finetune_llm "
        "--train {input.train:q} --val {input.val:q} --out {output:q} "
        "--settings {params.settings:q} --log {log:q}"
