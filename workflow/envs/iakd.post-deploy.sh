#!/usr/bin/env bash
# Snakemake runs this once, in the workflow's folder, in the environment of iakd.yaml.
# `make lock` writes the hash, so that Snakemake makes another environment when the lock has changed.
set -euo pipefail
echo "1091e65971b0d18d3531eb1b1fa1f616778afe02a24bde3ea7b8135269f91978  requirements.lock" | sha256sum --check --quiet
python -m pip install --quiet --require-hashes --requirement requirements.lock
python -m pip install --quiet --no-deps --no-build-isolation --editable .
