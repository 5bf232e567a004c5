# The whole chain: images → teachers → tuned settings → students → evaluation → export → report.
#
#   snakemake --cores all                                   with the settings in params.yaml
#   snakemake --cores all --configfile experiments/X.yaml   with another complete settings file
#   snakemake --cores all --config 'distill={seeds: [0]}'   with one setting changed
#   snakemake --cores all -- students                       up to a target: data teachers studies students evaluation exports report


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/teach.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.data.input,
        rules.teachers.input,
        rules.studies.input,
        rules.students.input,
        rules.evaluation.output,
        rules.exports.input,
        rules.report.output,
    message:
        "All results are up to date"


onstart:
    start()


onsuccess:
    finish(succeeded=True)


onerror:
    finish(succeeded=False)
