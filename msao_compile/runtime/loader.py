"""Read a deployment folder and trust nothing in it: schema, paths, symbolic links, sizes and digests."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from msao_compile.errors import DamagedFile, DeploymentError
from msao_compile.manifest.digest import sha256_file
from msao_compile.manifest.schema import MANIFEST_NAME, NEWER_MINOR, SCHEMA_MAJOR, SCHEMA_MINOR, Deployment, FileRef
from msao_compile.manifest.signature import refuse_untrusted

logger = logging.getLogger(__name__)


def read_manifest(folder: Path) -> Deployment:
    """The folder's deployment.json; of a newer minor schema what is known here, with a warning.

    Raises:
        DeploymentError: missing, not JSON, of a newer major schema, or not valid; the message names the field.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise DeploymentError(f"{folder}: no {MANIFEST_NAME}; point at a folder that `msao-compile build` wrote")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DeploymentError(f"{path}: not valid JSON ({error}); copy the deployment again") from error
    context = NEWER_MINOR if _is_newer_minor(path, content) else None
    try:
        return Deployment.model_validate(content, context=context)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the manifest"
        raise DeploymentError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def refuse_unsigned(folder: Path, trusted_keys: Path) -> None:
    """Refuse a manifest that none of the trusted keys signed as it is.

    Raises:
        DeploymentError, DamagedFile, InputError, MissingTool: as `signature.refuse_untrusted`; or there is no manifest.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise DeploymentError(f"{folder}: no {MANIFEST_NAME}; point at a folder that `msao-compile build` wrote")
    refuse_untrusted(path, trusted_keys)


def _is_newer_minor(path: Path, content: Any) -> bool:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, str) or not all(part.isdecimal() for part in version.split(".")):
        raise DeploymentError(
            f"{path}: schema_version is missing or not of the form '{SCHEMA_MAJOR}.{SCHEMA_MINOR}'; copy the "
            "deployment again"
        )
    major, minor = (int(part) for part in [*version.split("."), "0"][:2])
    if major != SCHEMA_MAJOR:
        raise DeploymentError(
            f"{path}: schema_version {version} where this runtime reads {SCHEMA_MAJOR}.x; "
            "install a matching msao-compile or build the deployment again"
        )
    if minor > SCHEMA_MINOR:
        logger.warning(
            "%s: schema_version %s is newer than %d.%d; fields that are unknown here are left out",
            path,
            version,
            SCHEMA_MAJOR,
            SCHEMA_MINOR,
        )
    return minor > SCHEMA_MINOR


def locate(folder: Path, reference: FileRef, digest: bool = True) -> Path:
    """The file behind a reference, inside the folder and with the promised bytes.

    Raises:
        DeploymentError: it is missing or a symbolic link leads out of the folder.
        DamagedFile: size or (with `digest`) SHA-256 differ.
    """
    path = folder / reference.path
    if not path.is_file():
        raise DeploymentError(f"{path}: named by {MANIFEST_NAME} but missing; copy the deployment again or rebuild")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DeploymentError(f"{path}: a symbolic link that leads out of the deployment folder; copy the file itself")
    size = path.stat().st_size
    if size != reference.size_bytes:
        raise DamagedFile(f"{path}: {size} bytes where {reference.size_bytes} were recorded; copy it again or rebuild")
    if digest and (found := sha256_file(path)) != reference.sha256:
        raise DamagedFile(
            f"{path}: its SHA-256 is {found} where {reference.sha256} was recorded; copy it again or rebuild"
        )
    return path


def verify(folder: Path, deployment: Deployment) -> None:
    """Check every file the manifest names.

    Raises:
        DeploymentError: as `locate`, for the first file that is wrong.
    """
    for reference in deployment.all_files().values():
        locate(folder, reference)
