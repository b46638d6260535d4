"""What Gadgetron's client asks before a scan with a noise dependency: is the noise there, and how strong is it?

It sends a chain whose NoiseSummaryGadget names the measurement, then CLOSE, and waits for DEPENDENCY_QUERY and CLOSE.
"""

import re
from xml.sax.saxutils import unescape

import numpy as np
from ismrmrd import Meta

from inrecon.frame import Noise
from inrecon_server.protocol import DependencyQuery

_GADGET = "NoiseSummary"
# Not by an XML parser: the client writes the measurement ID as it is, whatever characters are in it.
_MEASUREMENT = re.compile(
    r'noise_file\s*(?:</name>\s*<value>|"\s+value=")\s*(?:GadgetronNoiseCovarianceMatrix_)?([^<"]*)'
)


def measurement_asked_for(text: str) -> str | None:
    """The ID of the measurement that the configuration `text` asks after, perhaps empty; None if it asks nothing."""
    if _GADGET not in text or not text.lstrip("\0 \t\r\n\ufeff").startswith("<"):
        return None
    named = _MEASUREMENT.search(text)
    return unescape(named[1]).strip() if named else ""


def answer(noise: Noise | None) -> DependencyQuery:
    """What is known: sigma is the standard deviation of a complex noise sample, over the channels."""
    if noise is None:
        return DependencyQuery(Meta({"status": "failed"}).serialize())
    sigma = np.sqrt(noise.covariance.diagonal().real)
    facts = {
        "status": "success",
        "channels": len(sigma),
        "min_sigma": sigma.min(),
        "max_sigma": sigma.max(),
        "mean_sigma": sigma.mean(),
        "noise_dwell_time_us": noise.sample_time_us,
    }
    return DependencyQuery(Meta({name: str(value) for name, value in facts.items()}).serialize())
