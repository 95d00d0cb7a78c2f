# flava_ds with all that its commands need; CUDA comes with torch's own packages, so a GPU asks for NVIDIA's
# container runtime on the host alone.
#
#   docker build -t flava_ds .
#   docker run --rm flava_ds                                       # flava_debug: 20 steps on the demo's data
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" flava_ds train flava_tiny --name mine ...
#
# Never built so far, as no docker was at hand. Instead, with Python 3.11: the extras were installed into an empty
# virtual environment, the package was installed from a copy of these folders, and flava_debug trained from there.
FROM python:3.11-slim-bookworm

# a C compiler: Triton builds its launchers with it, DeepSpeed its operators
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/flava_ds
COPY setup.py pyproject.toml README.md LICENSE ./
COPY ds_configs ds_configs
COPY kernels kernels
COPY flava_ds flava_ds
RUN pip install --no-cache-dir '.[demo,hf,eval,triton]'

# runs/ appears in the working directory, so mount a folder here to keep it
WORKDIR /work
# a build that ends well has trained, too
RUN flava-ds train flava_debug --name build_check && rm -rf runs

ENTRYPOINT ["flava-ds"]
CMD ["train", "flava_debug"]
