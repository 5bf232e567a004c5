rule distill:
    input:
        unpack(student_inputs),
        data=rules.prepare.output.manifest,
    output:
        model=RESULTS / "{student}" / MODEL,
        history=RESULTS / "{student}" / HISTORY,
        metrics=RESULTS / "{student}" / METRICS,
        run=RESULTS / "{student}" / RUN,
    log:
        "logs/{student}.log",
    benchmark:
        "logs/{student}.tsv"
    wildcard_constraints:
        student=one_of(PLAN.students),
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=4000,
        runtime=1440,
    params:
        key=lambda wildcards: JOBS[wildcards.student].key,
        options=student_options,
    message:
        "Training student {wildcards.student}"
    shell:
        'exec iakd distill --params "$IAKD_PARAMS" {params.options} > {log} 2>&1'


rule students:
    input:
        files_of(PLAN.students, MODEL, HISTORY, METRICS, RUN, EVALUATION),
    message:
        "The students are there"
