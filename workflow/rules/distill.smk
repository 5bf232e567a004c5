# A job trains one student, or several seeds of it side by side.
for number, (folders, students) in enumerate(folders_of_students()):

    rule:
        name:
            f"distill_{number + 1}" if number else "distill"
        input:
            unpack(partial(student_inputs, folders)),
            data=prepared(),
        output:
            model=student_files(folders, MODEL),
            history=student_files(folders, HISTORY),
            metrics=student_files(folders, METRICS),
            run=student_files(folders, RUN),
        log:
            f"logs/{folders[0]}.log",
        benchmark:
            f"logs/{folders[0]}.tsv"
        wildcard_constraints:
            student=one_of_students(students),
            seed=r"\d+",
        conda:
            "../envs/iakd.yaml"
        threads: THREADS * PROCESSES
        resources:
            gpu=gpus_of_training,
            mem_mb=4000,
            runtime=1440,
        params:
            *settings_of(students, *folders),
            options=student_options,
        message:
            f"Training student {' '.join(folders)}".replace("{", "{wildcards.")
        shell:
            'exec iakd distill --params "$IAKD_PARAMS" {params.options} > {log} 2>&1'


rule students:
    input:
        files_of(EXPERIMENT.students, MODEL, HISTORY, METRICS, RUN, EVALUATION),
    message:
        "All students are trained"
