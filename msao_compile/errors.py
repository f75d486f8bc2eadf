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


class GateError(MsaoError):
    """A gate refused the result: parity, accuracy or a budget."""

    exit_code = 5


class Interrupted(MsaoError):
    """The user or the system stopped the run."""

    exit_code = 130
