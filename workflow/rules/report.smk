rule report:
    input:
        comparison=rules.evaluation.output,
        evaluations=files_of(EXPERIMENT.trained, EVALUATION),
        runs=files_of(EXPERIMENT.trained, RUN, HISTORY),
        exports=rules.exports.input,
        studies=files_of(EXPERIMENT.studies, BEST, TRIALS, METRICS, *FILES_OF_STUDY),
        records=compared(EXPERIMENT.trained),
    output:
        page=report(REPORT, caption="../report/page.rst", category="Results", labels={"result": "report"}),
        tables=report(
            EXPERIMENT.report / names.TABLES_TEXT,
            caption="../report/tables.rst",
            category="Results",
            labels={"result": "tables"},
        ),
        numbers=EXPERIMENT.report / names.TABLES,
        verdict=report(
            EXPERIMENT.report / names.VERDICT,
            caption="../report/verdict.rst",
            category="Results",
            labels={"result": "verdict"},
        ),
        figures=[
            report(
                EXPERIMENT.report / names.FIGURES / f"{name}.svg",
                caption=f"../report/{name}.rst",
                category="Results",
                labels={"result": name},
            )
            for name in FIGURES
        ],
        picture=EXPERIMENT.report / names.FIGURES / "accuracy.png",
        paper=[EXPERIMENT.report / name for name in (names.LATEX, names.PARAGRAPH, names.BIBLIOGRAPHY)],
        vector=[EXPERIMENT.report / names.FIGURES / f"{name}.pdf" for name in FIGURES],
        data=EXPERIMENT.report / names.RESULTS_FILE,
    log:
        f"logs/{EXPERIMENT.report.relative_to(RESULTS)}.log",
    conda:
        "../envs/iakd.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        *settings("report", "stages.report"),
    message:
        "Writing the report"
    shell:
        'exec iakd report --params "$IAKD_PARAMS" > {log} 2>&1'
