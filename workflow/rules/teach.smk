rule teach:
    input:
        data=prepared(),
    output:
        model=RESULTS / "{teacher}" / MODEL,
        history=RESULTS / "{teacher}" / HISTORY,
        metrics=RESULTS / "{teacher}" / METRICS,
        run=RESULTS / "{teacher}" / RUN,
    log:
        "logs/{teacher}.log",
    benchmark:
        "logs/{teacher}.tsv"
    wildcard_constraints:
        teacher=one_of(EXPERIMENT.teachers),
    priority: 2  # nearly everything else waits for it
    conda:
        "../envs/iakd.yaml"
    threads: THREADS * PROCESSES
    resources:
        gpu=gpus_of_training,
        mem_mb=4000,
        runtime=1440,
    params:
        *settings_of(EXPERIMENT.teachers, "{teacher}"),
        options=teacher_options,
    message:
        "Training teacher {wildcards.teacher}"
    shell:
        'exec iakd teach --params "$IAKD_PARAMS" {params.options} > {log} 2>&1'


rule teachers:
    input:
        files_of(EXPERIMENT.teachers, MODEL, HISTORY, METRICS, RUN, EVALUATION),
    message:
        "All teachers are trained"
