"""Local-Selective Feature Distillation for Single Image Super-Resolution (arXiv 2111.10988), as notebooks"""

import os
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')   # before torch loads: waiting threads must not spin on a busy machine

__version__ = "0.1.0"
