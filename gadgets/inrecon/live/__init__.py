"""The way of a frame of an interventional stream, from readouts to image, in reading order.

    acquire -> condition and coil maps as the prior has them -> fit what differs from the prior -> image

The prior is an image of the same slice: the first fully sampled frame, the mean of the first few frames where none is,
or that of an earlier scan. Frames that cannot have one go the way of a scan's (`stream.reconstruct`).
"""

from inrecon.live.prior import Followed, Prior, begin, is_complete, mean_of, problem
from inrecon.live.slices import Slice
from inrecon.live.stream import Stream

__all__ = ["Followed", "Prior", "Slice", "Stream", "begin", "is_complete", "mean_of", "problem"]
