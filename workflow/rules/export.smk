rule export:
    input:
        data=prepared(),
        students=export_students,
        teachers=export_teachers,
    output:
        exported=RESULTS / "{export}" / names.EXPORTED,
    log:
        "logs/{export}.log",
    benchmark:
        "logs/{export}.tsv"
    wildcard_constraints:
        export=one_of(EXPERIMENT.exports),
    conda:
        "../envs/iakd.yaml"
    threads: THREADS
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        *settings_of(EXPERIMENT.exports, "{export}"),
        options=export_options,
    message:
        "Exporting {wildcards.export}"
    shell:
        'exec iakd export --params "$IAKD_PARAMS" {params.options} > {log} 2>&1'


rule latency:
    input:
        data=prepared(),
        models=files_of(EXPERIMENT.trained, MODEL, RUN, EVALUATION),
        exports=files_of(EXPERIMENT.exports, names.EXPORTED),
    output:
        latency=LATENCY,
    log:
        f"logs/{LATENCY.relative_to(RESULTS).with_suffix('.log')}",
    benchmark:
        f"logs/{LATENCY.relative_to(RESULTS).with_suffix('.tsv')}"
    priority: -1  # when little else is left to do
    conda:
        "../envs/iakd.yaml"
    threads: ALL_CORES  # so that nothing runs beside it
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        f"source={source_sha('iakd.stages.latency', 'iakd.export.latency')}",
    message:
        "Measuring how fast the networks are"
    shell:
        'exec iakd latency --params "$IAKD_PARAMS" > {log} 2>&1'


rule exports:
    input:
        files_of(EXPERIMENT.exports, names.EXPORTED),
        rules.latency.output if EXPERIMENT.exports else [],
    message:
        "The models are exported"
