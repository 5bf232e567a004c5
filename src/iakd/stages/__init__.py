"""One module per stage: what it reads and writes, nothing else."""
