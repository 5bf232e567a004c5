rule export:
    input:
        data=rules.prepare.output.manifest,
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
        "../../environment.yml"
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
        exported=rules.export.output.exported,
        teachers=export_teachers,
    output:
        latency=RESULTS / "{export}" / names.LATENCY,
    log:
        "logs/{export}.latency.log",
    benchmark:
        "logs/{export}.latency.tsv"
    wildcard_constraints:
        export=one_of(EXPERIMENT.exports),
    priority: -1  # when little else is left to do
    conda:
        "../../environment.yml"
    threads: ALL_CORES  # so that nothing runs beside it
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        f"source={source_sha('iakd.stages.latency', 'iakd.export.latency')}",
        options=export_options,
    message:
        "Measuring {wildcards.export}"
    shell:
        'exec iakd latency --params "$IAKD_PARAMS" {params.options} > {log} 2>&1'


rule exports:
    input:
        files_of(EXPERIMENT.exports, names.EXPORTED, names.LATENCY),
    message:
        "The models are exported"
