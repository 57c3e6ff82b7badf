"""Settings that the app and the worker share, read from the environment (``BITPRESS_...``)."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from store.archive_members import DatasetLimits
from store.specs import NAME_PATTERN

_PREFIX = "BITPRESS_"
_MIB = 2**20
_GIB = 2**30

# Of a decoded dataset that a worker keeps, where nothing else is set: a forecast rests on it too.
DEFAULT_CACHE_BYTES = 8 * _GIB


class StoreSettings(BaseSettings):
    """Where things lie and how large they may be. Sizes are in bytes."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", frozen=True)

    data_dir: Path = Field(
        default=Path("bitpress-data"),
        description="Folder of everything that persists; app and worker must share it.",
    )
    database_url: str = Field(
        default="",
        description="SQLAlchemy URL of the job database; SQLite inside data_dir where empty.",
    )
    runtime: str = Field(
        default="auto",
        description="Runtime that serves models and measures them before; auto: the fastest here.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe log lines that are written."
    )
    max_checkpoint_bytes: int = Field(
        default=2 * _GIB, gt=0, description="Largest checkpoint that may be uploaded."
    )
    max_archive_bytes: int = Field(
        default=8 * _GIB, gt=0, description="Largest dataset archive that may be uploaded."
    )
    max_dataset_bytes: int = Field(
        default=32 * _GIB, gt=0, description="Most bytes that a dataset archive may unpack to."
    )
    max_dataset_ratio: float = Field(
        default=200.0,
        gt=1,
        description="Most times its own size that an archive may unpack to, past the first 64 MiB.",
    )
    max_dataset_members: int = Field(
        default=2_000_000, gt=0, description="Most entries, folders included, of an archive."
    )
    max_dataset_images: int = Field(
        default=1_000_000, gt=0, description="Most images of a dataset."
    )
    max_dataset_classes: int = Field(
        default=10_000, gt=1, le=65_536, description="Most classes of a dataset."
    )
    max_member_bytes: int = Field(
        default=64 * _MIB, gt=0, description="Largest single file inside a dataset archive."
    )

    dataset_roots: str = Field(
        default="",
        description="Folders whose datasets are registered in place: name=/folder,name=/folder.",
    )

    @field_validator("dataset_roots")
    @classmethod
    def _are_folders_that_can_be_read(cls, roots: str) -> str:
        _root_folders(roots)
        return roots

    @field_validator("data_dir")
    @classmethod
    def _is_a_folder(cls, folder: Path) -> Path:
        if folder.expanduser().exists() and not folder.expanduser().is_dir():
            raise ValueError("this is a file; give a folder, which is made where it is missing")
        return folder

    @field_validator("database_url")
    @classmethod
    def _names_a_database(cls, url: str) -> str:
        if url and not url.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError("give a URL that begins with postgresql:// or sqlite:///")
        return url

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        # Absolute at once: a later change of the working directory must not move the store.
        # object.__setattr__ because the settings are frozen for everybody else.
        object.__setattr__(self, "data_dir", self.data_dir.expanduser().absolute())
        if not self.database_url:
            url = f"sqlite:///{self.data_dir / 'bitpress.sqlite'}"
            object.__setattr__(self, "database_url", url)
        return self

    @property
    def uploads_dir(self) -> Path:
        """Root of the `UploadStore`."""
        return self.data_dir / "uploads"

    @property
    def datasets_dir(self) -> Path:
        """Root of the `DatasetStore`."""
        return self.data_dir / "datasets"

    @property
    def models_dir(self) -> Path:
        """Root of the `ModelStore`."""
        return self.data_dir / "models"

    @property
    def jobs_dir(self) -> Path:
        """The files of a job lie in ``jobs_dir / job_id``."""
        return self.data_dir / "jobs"

    @property
    def cache_dir(self) -> Path:
        """What can be made again at any time: decoded datasets."""
        return self.data_dir / "cache"

    @property
    def dataset_root_folders(self) -> dict[str, Path]:
        """The operator's folders with datasets, by name."""
        return _root_folders(self.dataset_roots)

    @property
    def dataset_limits(self) -> DatasetLimits:
        """The limits under which the `DatasetStore` reads an archive."""
        return DatasetLimits(
            max_unpacked_bytes=self.max_dataset_bytes,
            max_ratio=self.max_dataset_ratio,
            max_members=self.max_dataset_members,
            max_images=self.max_dataset_images,
            max_classes=self.max_dataset_classes,
            max_member_bytes=self.max_member_bytes,
        )


def _root_folders(roots: str) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for number, pair in enumerate(filter(None, map(str.strip, roots.split(","))), 1):
        name, _, folder = pair.partition("=")
        # Neither name nor folder is quoted: what was given is told nowhere.
        if not re.fullmatch(NAME_PATTERN, name) or name in folders:
            raise ValueError(
                f"pair {number} has no name of its own; give name=/folder,name=/folder"
            )
        path = Path(folder)
        if not path.is_absolute() or not path.is_dir():
            raise ValueError(f"pair {number} names no folder; give an absolute path that exists")
        if not os.access(path, os.R_OK | os.X_OK):
            raise ValueError(f"the folder of pair {number} cannot be read by this process's user")
        folders[name] = path
    return folders


def setting_faults(error: ValidationError) -> Iterator[dict[str, str]]:
    """Yield ``setting``, the environment variable, and ``fault`` of each unusable setting.

    A fault of several settings together names them itself. What was given is told nowhere: it
    may be a password.
    """
    for fault in error.errors(include_url=False, include_input=False):
        name = "_".join(str(part) for part in fault["loc"]).upper()
        yield {**({"setting": _PREFIX + name} if name else {}), "fault": fault["msg"]}
