# The workflow is in workflow/, where Snakemake's catalog and other workflows look for it.
include: "workflow/Snakefile"


workflow.default_target = "all"  # the default of an included file does not count
