from pathlib import Path
from typing import Self

import pytest
from pydantic import ValidationError, model_validator

from store.archive_members import DatasetLimits
from store.settings import StoreSettings, setting_faults


def test_defaults_lie_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BITPRESS_DATA_DIR", raising=False)
    monkeypatch.delenv("BITPRESS_DATABASE_URL", raising=False)
    settings = StoreSettings()
    assert settings.data_dir == tmp_path / "bitpress-data"
    assert settings.database_url == f"sqlite:///{tmp_path}/bitpress-data/bitpress.sqlite"


def test_the_store_stays_where_it_was_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = StoreSettings(data_dir=Path("data"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert settings.models_dir == tmp_path / "data" / "models"


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_DATA_DIR", "/srv/bitpress")
    monkeypatch.setenv("BITPRESS_DATABASE_URL", "postgresql+psycopg://db/bitpress")
    monkeypatch.setenv("BITPRESS_MAX_MEMBER_BYTES", "1234")
    monkeypatch.setenv("BITPRESS_SETTING_OF_THE_APP", "ignored here")
    settings = StoreSettings()
    assert settings.uploads_dir == Path("/srv/bitpress/uploads")
    assert settings.database_url == "postgresql+psycopg://db/bitpress"
    assert settings.dataset_limits.max_member_bytes == 1234


def test_an_empty_database_url_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_DATABASE_URL", "")
    assert StoreSettings().database_url.startswith("sqlite:///")


@pytest.mark.parametrize("name", ["MAX_CHECKPOINT_BYTES", "MAX_DATASET_IMAGES"])
def test_a_limit_of_zero_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_" + name, "0")
    with pytest.raises(ValidationError):
        StoreSettings()


def test_every_setting_is_described() -> None:
    undescribed = [n for n, f in StoreSettings.model_fields.items() if not f.description]
    assert undescribed == []


def test_the_limits_without_settings_are_those_of_the_settings() -> None:
    assert StoreSettings().dataset_limits == DatasetLimits()


def test_the_shipped_archive_fits_the_default_limits() -> None:
    assert DatasetLimits().max_members >= 100_000
    assert DatasetLimits().max_images >= 60_000


def test_an_unusable_setting_is_named_and_what_was_given_is_not() -> None:
    class Settings(StoreSettings):
        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.max_dataset_images > 5:
                raise ValueError("too many images for the classes")
            return self

    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"max_member_bytes": "secret", "data_dir": 7})
    faults = {fault["setting"]: fault["fault"] for fault in setting_faults(caught.value)}
    assert set(faults) == {"BITPRESS_MAX_MEMBER_BYTES", "BITPRESS_DATA_DIR"}
    assert "secret" not in str(faults)
    with pytest.raises(ValidationError) as caught:
        Settings(max_dataset_images=6)
    (fault,) = setting_faults(caught.value)
    assert set(fault) == {"fault"}
    assert "too many images" in fault["fault"]


def test_a_file_for_a_folder_and_a_word_for_a_database_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for given, setting in (
        ({"data_dir": tmp_path / "file"}, "BITPRESS_DATA_DIR"),
        ({"database_url": "nonsense"}, "BITPRESS_DATABASE_URL"),
    ):
        with pytest.raises(ValidationError) as caught:
            StoreSettings(**given)
        (fault,) = setting_faults(caught.value)
        assert fault["setting"] == setting
        assert "give a" in fault["fault"]
