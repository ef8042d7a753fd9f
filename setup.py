"""Package metadata of hf_dynvit; the tools are set up in pyproject.toml."""

import re
from pathlib import Path
from shutil import copyfile

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "hf_dynvit/__init__.py").read_text(), re.MULTILINE)[1]

INSTALL = [
    "torch>=2.11",
    "transformers>=5.23,<6",
    "accelerate>=1.15",
    "datasets>=5.2",
    "evaluate>=0.4.6",
    "safetensors>=0.8",
    "huggingface-hub>=2.4,<3",
    "jinja2>=3.1",  # model cards
    "pandas>=3",  # tables of results
    "pillow>=12",
    "pyyaml>=6",
    "tabulate>=0.10",  # their Markdown
]
DEMO = ["matplotlib>=3.10", "scikit-learn>=1.7"]
SEARCH = ["pymoo>=0.6.1"]
RUNTIMES = [
    "onnx>=1.23",
    "onnxscript>=0.7",
    "onnxruntime>=1.32",
    "openvino>=2026.4",
    "nncf>=3.4",
]  # to compare with, and to deploy in
DEV = [
    "ipykernel>=7",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "peft>=0.21",
    "pytest>=9",
    "pytest-xdist>=3.8",
    "ruff>=0.17,<0.18",
]


class BuildWithTemplate(build_py):
    """The model card's template stays at the top level of the source tree; a built package carries a copy."""

    template = "model_card_template.md"

    def run(self):
        super().run()
        if not self.editable_mode:
            copyfile(ROOT / self.template, Path(self.build_lib) / "hf_dynvit" / self.template)

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        return [*outputs, str(Path(self.build_lib) / "hf_dynvit" / self.template)]


readme = ROOT / "README.md"

setup(
    name="hf_dynvit",
    version=VERSION,
    description="Vision Transformers that spend computation per image, as a Hugging Face transformers plugin",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="The hf_dynvit authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["hf_dynvit", "hf_dynvit.*"]),
    python_requires=">=3.11",
    install_requires=INSTALL,
    extras_require={
        "demo": DEMO,
        "search": SEARCH,
        "deploy": RUNTIMES,
        "dev": [*DEMO, *SEARCH, *DEV],
    },
    cmdclass={"build_py": BuildWithTemplate},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
