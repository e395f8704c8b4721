# SPDX-License-Identifier: Apache-2.0
"""The manifest of a flasher bundle: what to load into a board's RAM, how to boot it, and where images go."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["Dtb", "DtbVariant", "FileAddress", "FlasherBundleManifest", "FlasherLogin", "Spec"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\0" in value:
        raise ValueError(f"{value!r} is no path inside the bundle")
    return value


def _address(value: str) -> str:
    try:
        number = int(value, 16)
    except ValueError:
        number = -1
    if number < 0 or not value.strip() == value:
        raise ValueError(f"{value!r} is no hexadecimal address like 0x82000000")
    return value


class FileAddress(_Model):
    """A file of the bundle and the address in the board's RAM (hexadecimal) that it is loaded to."""

    file: str
    address: str

    _check_file = field_validator("file")(_inside)
    _check_address = field_validator("address")(_address)


class DtbVariant(_Model):
    """A device tree for one variant of a board; bootcmd: instead of the manifest's."""

    file: str | None = None
    bootcmd: str | None = None

    @field_validator("file")
    @classmethod
    def _check_file(cls, value: str | None) -> str | None:
        return value if value is None else _inside(value)


class Dtb(_Model):
    """Device trees. A variant may be written as just its file."""

    default: str
    address: str
    variants: dict[str, DtbVariant]

    _check_address = field_validator("address")(_address)

    @field_validator("variants", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {"file": one} if isinstance(one, str) else one for name, one in value.items()}
        return value


class FlasherLogin(_Model):
    """How to get to the flasher system's shell. Without a username it is there without login."""

    login_prompt: str = "login:"
    username: str | None = None
    password: str | None = Field(default=None, repr=False)
    prompt: str = "#"


class Metadata(_Model):
    """Name of the bundle."""

    name: str


class Spec(_Model):
    """What the bundle brings.

    bootcmd: U-Boot command that starts it. targets: block devices by name, ``/dev/...`` or
    ``/sys/class/block#<address>`` (the device whose sysfs path contains the address). preflash_commands: shell
    commands that prepare the flasher system.
    """

    manufacturer: str = ""
    link: str | None = None
    bootcmd: str
    shelltype: Literal["busybox"] = "busybox"
    login: FlasherLogin = FlasherLogin()
    default_target: str
    targets: dict[str, str]
    kernel: FileAddress
    initram: FileAddress | None = None
    dtb: Dtb | None = None
    preflash_commands: list[str] = []

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, value: dict[str, str]) -> dict[str, str]:
        if not value:
            raise ValueError("at least one target is required")
        for name, device in value.items():
            found = device.startswith("/dev/") or (
                device.startswith("/sys/class/block#") and len(device) > len("/sys/class/block#")
            )
            if not found or any(char.isspace() or not char.isprintable() for char in device):
                raise ValueError(f"{name}: {device!r} is neither /dev/... nor /sys/class/block#<address>")
        return value


class FlasherBundleManifest(_Model):
    """A whole manifest; `load` reads one."""

    apiVersion: Literal["jumpstarter.dev/v1alpha1"] = "jumpstarter.dev/v1alpha1"
    kind: Literal["FlashBundleManifest"] = "FlashBundleManifest"
    metadata: Metadata
    spec: Spec

    @classmethod
    def load(cls, path: Path) -> FlasherBundleManifest:
        """Read a manifest. Raises ConfigurationError, one line that names file and field."""
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigurationError(f"flasher manifest {path}: cannot be read: {reason}") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> FlasherBundleManifest:
        """Parse a manifest's text. ``where``: how errors call it."""
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or "not readable"
            raise ConfigurationError(f"flasher manifest {where}{line}: no YAML: {problem}") from None
        if not isinstance(data, dict):
            raise ConfigurationError(f"flasher manifest {where}: a mapping is required, not {type(data).__name__}")
        try:
            manifest = cls.model_validate(data)
        except ValidationError as error:
            raise ConfigurationError(f"flasher manifest {where}: {_first(error)}") from None
        spec = manifest.spec
        if spec.default_target not in spec.targets:
            raise ConfigurationError(
                f"flasher manifest {where}: field spec.default_target: there is no target {spec.default_target!r}; "
                f"targets: {', '.join(spec.targets)}"
            )
        if spec.dtb is not None and spec.dtb.default not in spec.dtb.variants:
            raise ConfigurationError(
                f"flasher manifest {where}: field spec.dtb.default: there is no variant {spec.dtb.default!r}; "
                f"variants: {', '.join(spec.dtb.variants) or 'none'}"
            )
        return manifest

    def variant(self, name: str | None) -> DtbVariant | None:
        """The device tree variant of that name, or the default one; None for a bundle without device trees.

        Raises ValueError that lists the variants.
        """
        dtb = self.spec.dtb
        if dtb is None:
            if name is not None:
                raise ValueError(f"variant {name!r}: the bundle {self.metadata.name} has no device trees")
            return None
        wanted = name or dtb.default
        if wanted not in dtb.variants:
            raise ValueError(f"variant {wanted!r} is unknown; available: {', '.join(dtb.variants)}")
        return dtb.variants[wanted]

    def bootcmd(self, name: str | None) -> str:
        """The boot command, of the variant where that has one."""
        variant = self.variant(name)
        return (variant.bootcmd if variant is not None else None) or self.spec.bootcmd


def _first(error: ValidationError) -> str:
    """The first problem as a phrase; the others are as easily seen once it is mended."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = [name for model in _models() for name in model.model_fields]
        near = get_close_matches(str(problem["loc"][-1]), known, n=1)
        message = "no such field" + (f", did you mean {near[0]}?" if near else "")
    elif problem["type"] == "missing":
        message = "is required"
    return f"field {place}: {message}"


def _models() -> list[type[_Model]]:
    return [FlasherBundleManifest, Spec, Metadata, FlasherLogin, Dtb, DtbVariant, FileAddress]
