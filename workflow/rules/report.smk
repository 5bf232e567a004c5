rule report:
    input:
        comparison=rules.evaluation.output,
        evaluations=files_of(PLAN.trained, EVALUATED),
        runs=files_of(PLAN.trained, RUN, HISTORY),
        studies=files_of(PLAN.studies, SCHEDULE, TRIALS),
    output:
        page=PLAN.report / "report.html",
        tables=[PLAN.report / "tables.csv", PLAN.report / "tables.md"],
        figures=[PLAN.report / "figures" / f"{name}.svg" for name in FIGURES],
    log:
        f"logs/{PLAN.report.relative_to(RESULTS)}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        key=key("report", PLAN.params.report.model_dump()),
    message:
        "Writing the report"
    shell:
        'exec iakd report --params "$IAKD_PARAMS" > {log} 2>&1'
