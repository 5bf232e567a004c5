#!/bin/sh
# Install the locked libraries of an image into /opt/iakd: sh tools/image.sh cuda|cpu [FOLDER]
# The Dockerfile and apptainer.def run it, in a folder with the two lock files. Every file is checked against its hash,
# except two with cpu: torch and torchvision in the locked versions, but built without CUDA. uv knows where those are.
set -eu
variant=$1
folder=${2:-/opt/iakd}
case $variant in cuda | cpu) ;; *) echo "VARIANT is $variant; choose cuda or cpu" >&2 && exit 2 ;; esac

python -m venv "$folder"
export VIRTUAL_ENV="$folder" UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
pip="$folder/bin/python -m pip --no-cache-dir --disable-pip-version-check --quiet"
$pip download --require-hashes --only-binary :all: --dest "$folder/wheels" --requirement requirements-image.lock
$pip install --require-hashes --no-index --find-links "$folder/wheels" --requirement requirements-image.lock
# A pod of Kubernetes installs the storage plugin when it starts; with this file it needs no network for that.
find "$folder/wheels" -type f ! -name 'snakemake_storage_plugin_s3-*' -delete

uv="$folder/bin/uv"
if [ "$variant" = cuda ]; then
    "$uv" pip install --require-hashes --requirement requirements.lock
else
    names='torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+'
    sed -nE "s/^($names)==.*/\1/p" requirements.lock > "$folder/not-installed.txt"
    "$uv" pip install --require-hashes --requirement requirements.lock --excludes "$folder/not-installed.txt"
    "$uv" pip install --no-deps --torch-backend cpu $(grep -oE '^(torch|torchvision)==[0-9.]+' requirements.lock)
fi
