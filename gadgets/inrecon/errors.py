"""The errors that cross doors, by kind. Each room names the ones it raises."""


class InreconError(Exception):
    """Base of every error that inrecon raises on purpose; its text is fit for a user's eyes."""


class InvalidHeader(InreconError):
    """The scan header is not ISMRMRD XML, or describes a scan that cannot be reconstructed."""


class InvalidFrame(InreconError):
    """The readouts do not make a frame: wrong shapes, no samples, values that are not finite."""


class CalibrationFailed(InreconError):
    """Coil maps cannot be estimated by the asked-for means; the text says why."""


class NoHyperparameters(InreconError):
    """No entry matches the scan protocol."""


class InvalidProtocolFile(InreconError):
    """A hyperparameter file is wrong; the text names file, field and the right names."""


class FitDiverged(InreconError):
    """The fit left the finite numbers, or ended further from the data than it began."""


class NoFit(InreconError):
    """There was no fit: no time was left for it, or it took its process along."""


class ReconstructionFailed(InreconError):
    """No image could be made of a frame, for reasons that are not the sender's."""


class DeviceBroken(InreconError):
    """A device is of no use to this process any more; another process may still have some of it."""


class UnknownName(InreconError):
    """A method, encoder, operator or configuration of that name does not exist."""


class ConfigError(InreconError):
    """A configuration of that name does not exist, or its text says something that cannot be done."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none: others' errors go on for pages."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
