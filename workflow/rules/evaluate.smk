rule evaluate:
    input:
        data=rules.prepare.output.manifest,
        model=RESULTS / "{model}" / MODEL,
    output:
        evaluation=RESULTS / "{model}" / EVALUATION,
    log:
        "logs/{model}.evaluate.log",
    benchmark:
        "logs/{model}.evaluate.tsv"
    wildcard_constraints:
        model=one_of(EXPERIMENT.trained),
    conda:
        "../../environment.yml"
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
        'exec iakd evaluate --params "$IAKD_PARAMS" --run $(dirname {input.model}) > {log} 2>&1'


rule evaluation:
    input:
        evaluations=files_of(EXPERIMENT.trained, EVALUATION),
        histories=files_of(EXPERIMENT.trained, HISTORY),
    output:
        *[EXPERIMENT.evaluation / name for name in COMPARISON],
        directory(EXPERIMENT.evaluation / names.ROWS),
    log:
        f"logs/{EXPERIMENT.evaluation.relative_to(RESULTS)}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        *settings("report", "stages.evaluate"),
    message:
        "Comparing all models"
    shell:
        'exec iakd evaluate --params "$IAKD_PARAMS" > {log} 2>&1'
