"""What the package is called, what it needs and what a wheel of it holds."""

from __future__ import annotations

import pathlib
import runpy

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent

RUNTIME = [
    "absl-py>=2.3",
    # tensorflow-datasets asks for it on Linux alone; Windows has no wheels.
    "array_record>=0.8; platform_system != 'Windows'",
    "chex>=0.1.92",
    # 0.12.11 was withdrawn by its authors.
    "flax>=0.12.8,!=0.12.11",
    # tensorflow-datasets imports it without asking for it.
    "importlib_resources>=6.4",
    "jax>=0.10.2",
    "matplotlib>=3.9",
    "numpy>=2.0",
    "optax>=0.2.8",
    # Version 1 replaces the checkpoint manager that the training loop uses.
    "orbax-checkpoint>=0.12.8,<1",
    "pillow>=11",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "sentencepiece>=0.2.1",
    "tensorboardX>=2.6.4",
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.66",
]

EXTRAS = {
    "cuda": ["jax[cuda]>=0.10.2"],
    "docs": ["furo>=2025.9", "myst-parser>=4", "sphinx>=8.2"],
    "lint": ["mypy>=1.18", "ruff>=0.14"],
    "test": ["pytest>=8.4", "pytest-cov>=7", "pytest-xdist>=3.8"],
    "tpu": ["jax[tpu]>=0.10.2"],
}

setup(
    name="jaxlab",
    version=runpy.run_path(str(ROOT / "jaxlab" / "_version.py"))["__version__"],
    description="Research on sequence models and deep networks in JAX: one house, many studies",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The jaxlab Authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["jaxlab", "jaxlab.*"]),
    package_data={"jaxlab": ["py.typed", "nn/cpu/*.cc", "nn/cpu/*.h"]},
    include_package_data=False,
    zip_safe=False,
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
