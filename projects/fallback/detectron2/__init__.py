"""The part of Detectron2's API that this project uses, for machines without Detectron2.

Names, signatures, defaults, config keys, parameter names and output files are Detectron2's, so that code,
configs and checkpoints made with one run with the other. What is left out raises ImportError or
NotImplementedError naming Detectron2. `import projects` puts this package on sys.path only where no
Detectron2 is installed.
"""

import warnings

__version__ = "0.6+fallback"

# fvcore compiles a function with torch.jit.script when it is imported, which current torch announces as
# deprecated. Nobody who uses this project can do anything about it.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")
