"""Two import packages from one distribution: flava_ds, and flava_kernels from the source root kernels/."""

from setuptools import find_packages, setup

setup(
    name="flava_ds",
    version="0.1.0",
    description=(
        "FLAVA pre-training at scale: images, text and pairs in one model, with DeepSpeed ZeRO and Triton "
        "kernels"
    ),
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["flava_ds", "flava_ds.*"])
    + find_packages("kernels")
    + ["flava_ds.ds_configs"],
    package_dir={"flava_kernels": "kernels/flava_kernels", "flava_ds.ds_configs": "ds_configs"},
    package_data={
        "flava_ds": [
            *(
                "py.typed",
                "data/vocab/*",
                "demo/*.txt",
                "demo/*.json",
                "demo/*.md",
                "demo/*.safetensors",
                "demo/data/*",
                "demo/licenses/*",
            ),
            *("recipes/*.safetensors", "report/*.html", "report/*.css"),
        ],
        "flava_ds.ds_configs": ["*.json"],
        "flava_kernels": ["py.typed"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=2.0",
        "deepspeed>=0.19.8",
        "einops>=0.8",
        "tyro>=1.0",
        "safetensors>=0.5",
        "tokenizers>=0.22.2",
        "tensorboard>=2.18",
        "pillow>=10",
        "fsspec>=2025.9",
        "tqdm>=4.66",
        "webdataset>=1.0.2",
        "pyyaml>=6",
        "prometheus-client>=0.20",
    ],
    extras_require={
        "triton": ["triton>=3.6"],
        "clip": ["open_clip_torch>=2.24"],
        "hf": ["transformers>=5.2", "timm>=1.0.3"],
        "eval": ["scikit-learn>=1.5", "scipy>=1.13", "h5py>=3.11", "jinja2>=3.1"],
        "demo": ["transformers>=5.2", "scikit-learn>=1.5", "scipy>=1.13", "matplotlib>=3.9", "jinja2>=3.1"],
        "wandb": ["wandb>=0.19"],
        "sweep": ["optuna>=4"],
        "prepare": ["py3langid>=0.4", "pyarrow>=16"],
        "remote": ["aiohttp>=3.10", "s3fs>=2025.9", "gcsfs>=2025.9", "huggingface-hub>=0.24"],
        "dev": [
            "transformers>=5.9",
            "timm>=1.0.12",
            "py3langid>=0.4",
            "open_clip_torch>=2.24",
            "aiohttp>=3.10",
            "s3fs>=2025.9",
            "pyarrow>=16",
            "optuna>=4",
            "wandb>=0.19",
            "mypy>=2.4",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "hypothesis>=6",
            "ruff>=0.8",
            "ninja",
            "pdoc>=15",
        ],
    },
    entry_points={"console_scripts": ["flava-ds=flava_ds.cli:main"]},
)
