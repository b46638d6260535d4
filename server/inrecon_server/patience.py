"""How long a server waits for a client, and how much it takes from it."""

from dataclasses import dataclass, replace

_REFUSED_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What a connection may cost.

    `idle_s`: how long a peer may neither send nor take anything. `greeting_s`: how long it may take to send
    configuration and header. `scan_s` and `scan_bytes`: how long it may send, and how much. `send_buffer_bytes`: how
    much may wait for the client before its next frame is reconstructed.
    `waiting_frames`: how many may wait for the worker before the socket is read on. After an error the client is heard
    out for at most `discard_s` and `discard_bytes`, and where its messages cannot be told apart any more, until it is
    silent for `silence_s`. `linger_s`: how long to wait for it to hang up. `progress_s`: after how long a client that
    waits for an image is told how far that is. `captured_s`: how long CLOSE may wait for the end of the capture, so
    that the client hears if that fails.
    """

    idle_s: float = 600.0
    greeting_s: float = 60.0
    scan_s: float = 86_400.0
    scan_bytes: int = 1 << 40
    send_buffer_bytes: int = 16 << 20
    waiting_frames: int = 2
    discard_s: float = 600.0
    discard_bytes: int = 8 << 30
    silence_s: float = 5.0
    linger_s: float = 2.0
    captured_s: float = 1.0
    progress_s: float = 60.0

    def cut_short(self) -> "Patience":
        """The patience with a client that is not served."""
        return replace(self, idle_s=min(self.idle_s, _REFUSED_S), discard_s=min(self.discard_s, _REFUSED_S))
