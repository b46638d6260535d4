"""inrecon: scan-specific MRI reconstruction with implicit neural representations.

Read ``inrecon.stream`` first: it wires the rooms in the order in which a scan passes through them.
Importing this package (or ``inrecon.frame``, ``inrecon.acquire``) does not import torch.
"""

from importlib.metadata import version

__version__ = version("inrecon")
