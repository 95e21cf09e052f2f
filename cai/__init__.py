"""Constitutional AI as a declarative experiment system (Bai et al. 2022, arXiv:2212.08073)."""

__version__ = "0.1.0"
