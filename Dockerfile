# An image with everything but the folder that it works in, /workdir:
#
#   docker build --tag iakd .                                  for GPUs, and CPUs
#   docker build --tag iakd:cpu --build-arg VARIANT=cpu .      without CUDA
#   docker run --rm --init --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/workdir" iakd
#
# The sources in /workdir/src, if there are any, are used instead of those in the image. docs/kubernetes.md has the rest.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG VARIANT=cuda

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory '*' \
    && mkdir --mode 1777 /home/iakd

WORKDIR /opt/source
COPY requirements.lock requirements-image.lock ./
COPY tools/image.sh tools/image.sh
RUN sh tools/image.sh "$VARIANT"
COPY LICENSE README.md pyproject.toml params.yaml dvc.yaml .dvcignore .gitignore ./
COPY .dvc .dvc
COPY src src
COPY workflow workflow
COPY experiments experiments
COPY docs docs
RUN VIRTUAL_ENV=/opt/iakd /opt/iakd/bin/uv pip install --no-cache --no-deps --no-build-isolation --compile-bytecode .

# LOGNAME: whoever runs this has no name in /etc/passwd, and Snakemake asks for one
ENV PATH=/opt/iakd/bin:$PATH \
    PYTHONPATH=/workdir/src \
    HOME=/home/iakd LOGNAME=iakd \
    PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_FIND_LINKS=/opt/iakd/wheels \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /workdir
USER 1000:1000
CMD ["snakemake", "--cores", "all"]
