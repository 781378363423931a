"""Packaging. ``pip install .`` carries every method and its configs."""

from setuptools import find_namespace_packages, setup

setup(
    name="bottom-up-segmentation",
    version="0.1.0",
    description="Bottom-up instance and panoptic segmentation on Detectron2",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["projects", "projects.*", "spatial_embeddings", "spatial_embeddings.*"])
    + ["projects.configs"],
    package_dir={"projects.configs": "configs"},
    package_data={"projects.configs": ["*.yaml", "*/*.yaml"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "cityscapesscripts>=2.2.0",
        "cloudpickle>=2.0",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "numpy>=1.24",
        "opencv-python-headless>=4.8",
        "pillow>=9.4",
        "pycocotools>=2.0.6",
        "shapely>=2.0",
        "tabulate>=0.9",
        "tensorboard>=2.13",
        "termcolor>=2.0",
        "tqdm>=4.65",
        "yacs>=0.1.8",
    ],
    extras_require={"dev": ["pytest>=7.4", "hypothesis>=6.80"]},
)
