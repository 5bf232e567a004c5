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


rule exports:
    input:
        files_of(EXPERIMENT.exports, names.EXPORTED),
    message:
        "The models are exported"
