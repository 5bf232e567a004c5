rule tune:
    input:
        data=prepared(),
        teacher=study_teacher,
    output:
        best=RESULTS / "{study}" / BEST,
        trials=RESULTS / "{study}" / TRIALS,
        history=RESULTS / "{study}" / HISTORY,
        metrics=RESULTS / "{study}" / METRICS,
        run=RESULTS / "{study}" / RUN,  # but not its journal, so that a study asked for more trials continues
        files=[
            directory(RESULTS / "{study}" / name) if name == TRIAL_FOLDERS else RESULTS / "{study}" / name
            for name in FILES_OF_STUDY
        ],
    log:
        "logs/{study}.log",
    benchmark:
        "logs/{study}.tsv"
    wildcard_constraints:
        study=one_of(EXPERIMENT.studies),
    priority: 1  # the tuned students wait for it
    conda:
        "../envs/iakd.yaml"
    threads: threads_of_study
    resources:
        gpu=gpu,
        tasks=tasks_of_study,
        mem_mb=4000 * EXPERIMENT.params.tune.workers,
        mem_mb_per_cpu=lambda wildcards: 4000 // THREADS if on_slurm() else 0,  # instead of mem_mb, for tasks on several nodes
        runtime=4320,
    params:
        *settings_of(EXPERIMENT.studies, "{study}"),
        f"tune.trials={EXPERIMENT.params.tune.trials}",
        options=study_options,
    message:
        "Searching for the best settings: {wildcards.study}"
    shell:
        'exec iakd tune --params "$IAKD_PARAMS" {params.options} --tasks {resources.tasks} > {log} 2>&1'


rule studies:
    input:
        files_of(EXPERIMENT.studies, BEST, TRIALS, HISTORY, METRICS, RUN),
    message:
        "All studies are finished"
