#!/usr/bin/env bash
# Install what the tests of this folder need, on Debian and as root: packages of the system, and of Python into .venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends \
  munge slurm-client slurmctld slurmd postgresql iproute2 util-linux > /dev/null
make .venv/ready
.venv/bin/uv pip install --quiet --python .venv/bin/python --constraints requirements.lock \
  snakemake-executor-plugin-slurm boto3 dvc-s3 'moto[server]' flask-wtf
