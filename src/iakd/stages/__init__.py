"""The stages: what each reads and writes, nothing else."""
