"""Every error this project raises on purpose, one class for each thing a caller does differently.

MsaoError                     base; `exit_code` is what the CLI returns
├── InputError            2   something the user gave is wrong: change it and run again
│   ├── RecipeError           the recipe file
│   ├── CheckpointError       a Hugging Face checkpoint folder
│   │   └── UnsupportedFamily the architecture is not one we split
│   ├── DeploymentError       a deployment folder or its deployment.json
│   │   └── DamagedFile       bytes differ from their recorded digest: rebuild or copy again
│   ├── PictureError          an image that cannot be decoded or is refused
│   └── PromptError           a prompt that cannot be encoded
│       └── CapacityExceeded  the request does not fit the KV cache: shorten it or raise kv_capacity
├── StageError            3   a build stage failed; what was finished is kept
│   └── ShapeSpecialised      export froze a dimension that was promised to be dynamic
├── MissingTool           4   a library, tool or device is absent; the message names the extra
├── RemoteError           4   the other side of a link did not answer as it should
│   ├── LinkDown              it cannot be reached, or went away: try again, or answer here
│   ├── Busy                  it has no room now: try again after `retry_after_ms`
│   ├── SessionLost           it does not know the session: open it again with what was committed
│   ├── DeadlineExceeded      the time allowed was over
│   ├── Refused               it does not let this client in: another token or certificate
│   └── ContractMismatch  2   it serves other modules, tokens or messages: deploy the same build on both
├── GateError             5   the work ran, but a gate (parity, accuracy, budget) said no
└── Interrupted         130   Ctrl-C or SIGTERM; the next build continues
"""

from __future__ import annotations


class MsaoError(Exception):
    """One sentence for the user: what is wrong, where, and what to change."""

    exit_code = 3


class InputError(MsaoError):
    """Something the user gave is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe file cannot be used as it is."""


class CheckpointError(InputError):
    """A checkpoint folder is incomplete, damaged or inconsistent."""


class UnsupportedFamily(CheckpointError):
    """The checkpoint's architecture is not one that can be split."""


class DeploymentError(InputError):
    """A deployment folder or its manifest cannot be used."""


class DamagedFile(DeploymentError):
    """A file's bytes differ from the digest recorded for them."""


class PictureError(InputError):
    """An image cannot be decoded, or decoding it is refused."""


class PromptError(InputError):
    """A prompt cannot be turned into tokens."""


class CapacityExceeded(PromptError):
    """A request needs more positions than the KV cache holds."""


class StageError(MsaoError):
    """A build stage failed."""

    exit_code = 3


class ShapeSpecialised(StageError):
    """An exported graph froze a dimension that was promised to be dynamic."""


class MissingTool(MsaoError):
    """A library, tool or device that is needed here is absent."""

    exit_code = 4


class RemoteError(MsaoError):
    """The other side of a link did not answer as it should; `code` names the fault on the wire."""

    exit_code = 4
    code = "internal"


class LinkDown(RemoteError):
    """The other side cannot be reached, or went away in the middle."""

    code = "unavailable"


class Busy(RemoteError):
    """The other side has no room for a request now."""

    code = "busy"

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class SessionLost(RemoteError):
    """The other side does not know the session, or no longer: open it again with what was committed."""

    code = "unknown_session"


class DeadlineExceeded(RemoteError):
    """The time a request was given is over."""

    code = "deadline"


class Refused(RemoteError):
    """The other side does not let this client in."""

    code = "unauthenticated"


class ContractMismatch(RemoteError):
    """The two sides have other modules, tokens or messages than each other."""

    exit_code = 2
    code = "mismatch"


class GateError(MsaoError):
    """A gate refused the result: parity, accuracy or a budget."""

    exit_code = 5


class Interrupted(MsaoError):
    """The user or the system stopped the run."""

    exit_code = 130
