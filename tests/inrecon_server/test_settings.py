"""Settings: three sources, one order, and a line for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from inrecon_server.settings import InvalidSettings, ServerSettings, resolve


def test_options_come_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "inrecon.yaml"
    file.write_text("port: 1\nhost: file\nidle_s: 7\n")
    environment = {"INRECON_PORT": "2", "INRECON_HOST": "environment", "HOME": "elsewhere"}
    resolved = resolve({"port": 3, "host": None, "settings": file}, environment)
    assert (resolved.settings.port, resolved.settings.host, resolved.settings.idle_s) == (3, "environment", 7)
    assert resolved.sources == {"port": "option", "host": "environment", "idle_s": "settings file"}
    lines = resolved.lines()
    assert len(lines) == len(ServerSettings.model_fields)
    assert "idle_s = 7.0 (settings file)" in lines
    assert "device = auto (default)" in lines


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "inrecon.yaml").write_text("verbose: true\n")
    assert resolve({}, {"INRECON_SETTINGS": str(tmp_path / "inrecon.yaml")}).settings.verbose


def test_gadgetrons_own_variable_names_its_storage_server(tmp_path: Path) -> None:
    def address(environment: Mapping[str, str], **options: object) -> str:
        return str(resolve(options, environment).settings.storage_address)

    gadgetrons = {"GADGETRON_STORAGE_ADDRESS": "http://there:9112"}
    (tmp_path / "inrecon.yaml").write_text("storage_address: http://file")
    assert address(gadgetrons, settings=tmp_path / "inrecon.yaml") == "http://there:9112/"
    assert address(gadgetrons | {"INRECON_STORAGE_ADDRESS": "https://here"}) == "https://here/"
    assert address(gadgetrons, storage_address="http://option/path") == "http://option/path"
    assert address({"GADGETRON_STORAGE_ADDRESS": ""}) == "None"


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "inrecon.yaml").write_text("# nothing yet\n")
    assert resolve({"settings": tmp_path / "inrecon.yaml"}, {}).settings == ServerSettings()


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        ({"port": -1}, {}, "port (option): input should be greater than or equal to 0, not -1"),
        ({"igtl_port": 65536}, {}, "igtl_port (option): input should be less than or equal to 65535"),
        ({}, {"INRECON_PROT": "1"}, "there is no setting 'prot' (environment): did you mean 'port'?"),
        ({}, {"INRECON_ALLOW": "10.0.0.0/8, here"}, "allow.1 (environment): "),
        ({}, {"INRECON_PORT": "abc"}, "port (environment): input should be a valid integer"),
        ({"tune_seconds": 3}, {}, "tune_seconds and candidates go together"),
        ({"state_hours": 0}, {}, "state_hours (option): input should be greater than 0"),
        ({"state_folder": "/nowhere"}, {}, "state_folder (option): path does not point to a directory"),
        ({}, {"GADGETRON_STORAGE_ADDRESS": "file:///etc"}, "storage_address (environment): URL scheme should be"),
        ({}, {"GADGETRON_STORAGE_ADDRESS": "localhost:3333"}, "storage_address (environment): URL scheme should be"),
        ({"storage_address": "http://me@host"}, {}, "storage_address (option): must be http(s)://host"),
        ({"storage_address": "http://host/?a=b"}, {}, "storage_address (option): must be http(s)://host"),
        ({"savedata": True}, {}, "savedata, savedata_days and savedata_gib need savedata_folder"),
        ({"savedata_days": 3}, {}, "savedata, savedata_days and savedata_gib need savedata_folder"),
        ({"savedata_folder": "/nowhere"}, {}, "savedata_folder (option): path does not point to a directory"),
        ({"hyperparameters": "/nowhere"}, {}, "hyperparameters (option): path does not point to a directory"),
    ],
)
def test_what_is_wrong_is_told_with_its_source(
    options: Mapping[str, object], environment: Mapping[str, str], told: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        resolve(options, environment)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "told"), [("- port", "must hold lines of"), ("port: [", "is not valid YAML")])
def test_a_file_that_is_none_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "inrecon.yaml").write_text(text)
    with pytest.raises(InvalidSettings, match=told):
        resolve({"settings": tmp_path / "inrecon.yaml"}, {})


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "inrecon.yaml").write_bytes(b"# Ger\xe4t")
    with pytest.raises(InvalidSettings, match=r"inrecon\.yaml is not text in UTF-8"):
        resolve({"settings": tmp_path / "inrecon.yaml"}, {})


def test_the_environment_is_plain_text() -> None:
    environment = {"INRECON_HOST": "::", "INRECON_DEFAULT_CONFIG": "null", "INRECON_ALLOW": "10.0.0.0/8, ::1"}
    settings = resolve({}, environment).settings
    assert (settings.host, settings.default_config) == ("::", "null")
    assert list(map(str, settings.allow)) == ["10.0.0.0/8", "::1/128"]
