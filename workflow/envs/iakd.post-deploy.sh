#!/usr/bin/env bash
# Snakemake runs this once, in the workflow's folder, in the environment of iakd.yaml.
# `make lock` writes the hash, so that Snakemake makes another environment when the lock has changed.
set -euo pipefail
[ -e requirements.lock ] || { echo "--sdm conda is for a clone of the repository, with its requirements.lock" >&2; exit 1; }
echo "aca1484222843e2d5af8f378ec5aa07024e0d551706637fc4955d48dceee5e28  requirements.lock" | sha256sum --check --quiet
python -m pip install --quiet --require-hashes --requirement requirements.lock
python -m pip install --quiet --no-deps --no-build-isolation --editable .
