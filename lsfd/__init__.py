"""Local-Selective Feature Distillation for Single Image Super-Resolution (arXiv 2111.10988), as notebooks"""

__version__ = "0.1.0"
