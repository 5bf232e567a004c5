rule prepare:
    output:
        manifest=PLAN.data.folder / MANIFEST,
        arrays=files_of([PLAN.data], *engine.data_products(PLAN)),
    log:
        f"logs/{PLAN.data.path}.log",
    benchmark:
        f"logs/{PLAN.data.path}.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        key=PLAN.data.key,
        files=engine.data_files(PLAN),
    message:
        "Reading and splitting the data set"
    shell:
        'exec iakd prepare --params "$IAKD_PARAMS" > {log} 2>&1'


rule data:
    input:
        rules.prepare.output,
    message:
        "The data are there"
