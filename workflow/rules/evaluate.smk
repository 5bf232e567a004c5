rule evaluate:
    input:
        data=prepared(),
        model=RESULTS / "{model}" / MODEL,
        record=[RESULTS / "{model}" / RUN] if STORAGE else [],
    output:
        evaluation=RESULTS / "{model}" / EVALUATION,
    log:
        "logs/{model}.evaluate.log",
    benchmark:
        "logs/{model}.evaluate.tsv"
    wildcard_constraints:
        model=one_of(EXPERIMENT.trained),
    conda:
        "../envs/iakd.yaml"
    threads: THREADS
    resources:
        gpu=gpu,
        mem_mb=4000,
        runtime=120,
    params:
        *settings("evaluate", "evaluation.measure"),
    message:
        "Evaluating {wildcards.model}"
    shell:
        f'exec iakd evaluate --params "$IAKD_PARAMS" --run {FOLDER_OF_MODEL} > {{log}} 2>&1'


rule evaluation:
    input:
        evaluations=files_of(EXPERIMENT.trained, EVALUATION),
        histories=files_of(EXPERIMENT.trained, HISTORY),
        records=compared(EXPERIMENT.trained),
    output:
        *[EXPERIMENT.evaluation / name for name in COMPARISON],
        directory(EXPERIMENT.evaluation / names.ROWS),
    log:
        f"logs/{EXPERIMENT.evaluation.relative_to(RESULTS)}.log",
    conda:
        "../envs/iakd.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        *settings("report", "stages.evaluate"),
    message:
        "Comparing all models"
    shell:
        'exec iakd evaluate --params "$IAKD_PARAMS" > {log} 2>&1'
