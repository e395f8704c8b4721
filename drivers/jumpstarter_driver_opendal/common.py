# SPDX-License-Identifier: Apache-2.0
"""What a storage answers: values as they travel, the same as Jumpstarter's. No dependency on opendal."""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

__all__ = ["Capability", "EntryMode", "HashAlgo", "Metadata", "Mode", "PathBuf", "PresignedRequest"]

Mode = Literal["rb", "wb"]
HashAlgo = Literal["md5", "sha256"]
PathBuf = str | PathLike[str]


class EntryMode(BaseModel):
    """Whether an entry is a file or a folder."""

    model_config = ConfigDict(populate_by_name=True)
    entry_is_file: bool = Field(
        validation_alias=AliasChoices("entry_is_file", "is_file"), serialization_alias="is_file"
    )
    entry_is_dir: bool = Field(validation_alias=AliasChoices("entry_is_dir", "is_dir"), serialization_alias="is_dir")

    def is_file(self) -> bool:
        """It is a file."""
        return self.entry_is_file

    def is_dir(self) -> bool:
        """It is a folder."""
        return self.entry_is_dir


class Metadata(BaseModel):
    """What is known about an entry. ``content_length``: bytes; the rest None where the storage does not know."""

    content_disposition: str | None = None
    content_length: int
    content_md5: str | None = None
    content_type: str | None = None
    etag: str | None = None
    mode: EntryMode


class PresignedRequest(BaseModel):
    """An HTTP request that whoever holds it may make until it expires: ``url``, ``method``, ``headers``."""

    url: str
    method: str
    headers: dict[str, str]


with warnings.catch_warnings():
    # "copy" is opendal's word and travels so; pydantic's own method of that name is deprecated and not used here
    warnings.filterwarnings("ignore", message='Field name "copy"')

    class Capability(BaseModel):
        """What a storage can do. Sizes in bytes, None without a limit."""

        model_config = ConfigDict(extra="ignore", protected_namespaces=())

        stat: bool = False
        stat_with_if_match: bool = False
        stat_with_if_none_match: bool = False

        read: bool = False
        read_with_if_match: bool = False
        read_with_if_none_match: bool = False
        read_with_override_cache_control: bool = False
        read_with_override_content_disposition: bool = False
        read_with_override_content_type: bool = False

        write: bool = False
        write_can_multi: bool = False
        write_can_empty: bool = False
        write_can_append: bool = False
        write_with_content_type: bool = False
        write_with_content_disposition: bool = False
        write_with_cache_control: bool = False
        write_multi_max_size: int | None = None
        write_multi_min_size: int | None = None
        write_total_max_size: int | None = None

        create_dir: bool = False
        delete: bool = False
        copy: bool = False  # type: ignore[assignment]
        rename: bool = False

        list: bool = False
        list_with_limit: bool = False
        list_with_start_after: bool = False
        list_with_recursive: bool = False

        presign: bool = False
        presign_read: bool = False
        presign_stat: bool = False
        presign_write: bool = False

        shared: bool = False
        blocking: bool = False

        @classmethod
        def of(cls, known: Any) -> Capability:
            """From an object with attributes of these names; the missing ones are False."""
            return cls(**{name: getattr(known, name) for name in cls.model_fields if hasattr(known, name)})
