# The whole chain: images → teachers → schedule → students → evaluation → report.
#
#   snakemake --cores all                                   as params.yaml says
#   snakemake --cores all --configfile experiments/X.yaml   as another complete settings file says
#   snakemake --cores all --config 'distill={seeds: [0]}'   as params.yaml says, but for this
#   snakemake --cores all -- students                       up to here: data teachers studies students evaluation report

if not workflow.overwrite_configfiles:  # a file named on the command line stands alone, not on top of this one

    configfile: "params.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/teach.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.data.input,
        rules.teachers.input,
        rules.studies.input,
        rules.students.input,
        rules.evaluation.output,
        rules.report.output,
    message:
        "All results are up to date"


onstart:
    start()


onsuccess:
    finish(succeeded=True)


onerror:
    finish(succeeded=False)
