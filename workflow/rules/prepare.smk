rule prepare:
    output:
        manifest=EXPERIMENT.data.folder / MANIFEST,
        arrays=files_of([EXPERIMENT.data], *hooks.data_products(EXPERIMENT)),
    log:
        f"logs/{EXPERIMENT.data.path}.log",
    benchmark:
        f"logs/{EXPERIMENT.data.path}.tsv"
    conda:
        "../envs/iakd.yaml"
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        *settings_of([EXPERIMENT.data], EXPERIMENT.data.path),
        f"files={hooks.data_files(EXPERIMENT)}",
    message:
        "Reading and splitting the data set"
    shell:
        'exec iakd prepare --params "$IAKD_PARAMS" > {log} 2>&1'


rule data:
    input:
        rules.prepare.output,
    message:
        "The data set is prepared"
