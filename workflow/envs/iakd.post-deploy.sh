#!/usr/bin/env bash
# Snakemake runs this once, in the workflow's folder, in the environment of iakd.yaml.
# `make lock` writes the hash, so that Snakemake makes another environment when the lock has changed.
set -euo pipefail
[ -e requirements.lock ] || { echo "--sdm conda is for a clone of the repository, with its requirements.lock" >&2; exit 1; }
echo "80f3e3253af251b0874a66e110ff3413a8abc58d53366721e303d73915bf116b  requirements.lock" | sha256sum --check --quiet
python -m pip install --quiet --require-hashes --requirement requirements.lock
python -m pip install --quiet --no-deps --no-build-isolation --editable .
