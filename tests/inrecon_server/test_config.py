"""Names and texts of configurations."""

import json
import os
from importlib.resources import files

import pytest

from inrecon.errors import ConfigError
from inrecon.frame import Request
from inrecon_server.config import Configuration, Wishes, amend, configure, names, recorded, requested

NAMES = [name for name in names() if name not in ("null", "savedataonly", "default_measurement_dependencies")]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_the_same_with_and_without_suffix_and_as_the_text_of_its_file(name: str) -> None:
    text = (files("inrecon") / "config" / f"{name}.xml").read_text(encoding="utf-8")
    assert configure(name).request == configure(f"{name}.xml").request == configure(text).request


def test_the_shipped_names_ask_for_what_they_are_called() -> None:
    assert configure("inr").request == Request()
    assert configure("cg_sense").request.method == "cg_sense"
    assert configure("zero_filled.xml").request.method == "zero_filled"


@pytest.mark.parametrize("name", ["null", "null.xml", "isalive.xml", "gtquery.xml", "savedataonly"])
def test_null_and_health_checks_want_no_reconstruction(name: str) -> None:
    assert configure(name).is_null
    assert configure(name).saves_only == (name == "savedataonly")


def test_gadgetrons_name_for_a_noise_scan_keeps_noise_only() -> None:
    for name in ("default_measurement_dependencies", "default_measurement_dependencies.xml"):
        assert configure(name).keeps_noise_only
    assert not configure("inr").keeps_noise_only


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'cg_sens'.*did you mean 'cg_sense'.*known are cg_sense, default_"):
        configure("cg_sens")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "../config/cg_sense.xml",
        "/etc/passwd",
        "inrecon.config",
        "os",
        "",
        ".xml",
        "HOME",
        "a" * 1023,
    ],
)
def test_a_name_is_never_a_path_an_import_or_a_variable(name: str) -> None:
    assert "HOME" in os.environ
    with pytest.raises(ConfigError, match="known are"):
        configure(name)


def test_properties_of_xml_set_the_request_wherever_they_stand() -> None:
    text = """<?xml version="1.0"?><configuration><a><property name="method" value="bilevel_inr"/></a>
    <property name="preset" value="fast"/><property name="dtype" value="complex"/>
    <property name="iterations" value="7"/></configuration>"""
    wanted = Request(method="bilevel_inr", preset="fast", dtype="complex", overrides={"iterations": "7"})
    assert configure(text).request == wanted


@pytest.mark.parametrize("form", ["xml", "json"])
def test_all_that_may_be_asked_for_can_be_told_in_either_form(form: str) -> None:
    told = {"deadline": 2.5, "priority": "realtime", "compare": "true", "series_name": "needle", "iterations": 40}
    properties = "".join(f'<property name="{name}" value="{value}"/>' for name, value in told.items())
    texts = {"xml": f"<configuration>{properties}</configuration>", "json": json.dumps({"parameters": told})}
    assert configure(texts[form]).request == Request(
        deadline_s=2.5, priority="realtime", compare=True, series_name="needle", overrides={"iterations": "40"}
    )


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("deadline", "0", "deadline: input should be greater than 0, not '0'"),
        ("deadline", "nan", "deadline: "),
        ("deadline", "soon", "deadline: input should be a valid number"),
        ("priority", "now", "unknown priority 'now': known are realtime, inline, replay"),
        ("compare", "perhaps", "compare: input should be a valid boolean"),
        ("series_name", "a" * 65, "series_name: string should have at most 64 characters"),
        ("series_name", "a\nb", "series_name: "),
    ],
)
def test_what_cannot_be_asked_for_is_refused(name: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(json.dumps({"parameters": {name: value}}))
    assert told in str(caught.value)


def test_what_gadgetron_sends_is_known_as_gadgetrons() -> None:
    properties = '<property name="peer" value="gadgetron"/><property name="method" value="cg_sense"/>'
    inner = f"<configuration>{properties}</configuration>"
    chain = f"<configuration><stream><external>{inner}</external></stream></configuration>"
    assert configure(inner).from_gadgetron
    assert not configure(chain).from_gadgetron
    assert not configure("cg_sense").from_gadgetron
    assert configure(inner).request == configure(chain).request == Request(method="cg_sense")


def test_properties_of_gadgets_are_not_ours() -> None:
    gadget = '<gadget><name>Noise</name><property name="method" value="x"/></gadget>'
    ours = '<external><configuration><property name="method" value="cg_sense"/></configuration></external>'
    assert configure(f"<configuration><stream>{gadget}{ours}</stream></configuration>").request == Request(
        method="cg_sense"
    )


def test_a_chain_of_other_peoples_gadgets_is_refused() -> None:
    with pytest.raises(ConfigError, match="Gadgetron's own gadgets"):
        configure("<configuration><stream><gadget><name>FFT</name></gadget></stream></configuration>")


def test_a_namespace_changes_nothing() -> None:
    gadgetrons = 'xmlns="http://gadgetron.sf.net/gadgetron"'
    with pytest.raises(ConfigError, match="Gadgetron's own gadgets"):
        configure(f"<configuration {gadgetrons}><gadget><name>FFT</name></gadget></configuration>")
    ours = f'<configuration {gadgetrons}><property name="method" value="cg_sense"/></configuration>'
    assert configure(ours).request == Request(method="cg_sense")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<configuration><property", "not well-formed XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><configuration>&b;</configuration>', "DOCTYPE"),
        ("<c><property name='preset'/></c>", "'preset' has no value"),
        ("<c><property name='preset' value='best'/></c>", "'best': known are fast, standard, quality"),
        ("<c><property name='dtype' value='int16'/></c>", "'int16': known are complex, float, uint16"),
        ("<c>" + "".join(f"<property name='a{i}' value='1'/>" for i in range(101)) + "</c>", "101 properties"),
        (f"<c><property name='method' value='{'a' * 201}'/></c>", "more than 200 characters"),
        ("<" + " " * (1 << 20), "characters"),
        ("{", "not well-formed JSON"),
        ("{" * 100_000, "not well-formed JSON"),
        ('{"a":' + "[" * 100_000, "not well-formed JSON"),
        ('{"preset": "fast"}', '"parameters"'),
        ('{"parameters": ["fast"]}', '"parameters"'),
    ],
)
def test_a_wrong_text_is_refused_with_the_reason(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) if len(text) < (1 << 20) else pytest.raises(ConfigError):
        configure(text)


def test_json_sets_what_it_knows_and_names_what_it_ignores() -> None:
    parameters = {"config": "cg_sense", "customconfig": "", "preset": "quality", "sendOriginal": True, "dtype": "None"}
    configuration = configure(json.dumps({"version": "1.1.0", "parameters": parameters}))
    assert configuration.request == Request(method="cg_sense", preset="quality")
    assert configuration.name == "cg_sense"
    assert configuration.ignored == ("sendOriginal",)


def test_a_stream_begins_with_a_new_prior_whether_it_is_asked_to_or_not() -> None:
    asked = configure('{"parameters": {"config": "inr_imri", "new_prior": "true"}}')
    assert asked.request == configure("inr_imri").request
    assert asked.ignored == ()
    assert configure('{"parameters": {"config": "inr", "new_prior": "true"}}').ignored == ("new_prior",)


def test_a_window_that_moves_on_must_be_one() -> None:
    with pytest.raises(ConfigError, match="there is no window"):
        configure('{"parameters": {"config": "inr_imri", "step": "5"}}')
    with pytest.raises(ConfigError, match="frame_policy: only interventional streams"):
        configure('{"parameters": {"frame_policy": "all"}}')


def test_json_amends_what_came_before() -> None:
    before = Configuration(name="cg_sense", request=Request(method="cg_sense", overrides={"iterations": "7"}))
    after = amend(before, '{"parameters": {"dtype": "float"}}')
    assert after.request == Request(method="cg_sense", dtype="float", overrides={"iterations": "7"})
    assert amend(before, '{"parameters": {"customconfig": "zero_filled"}}').request == Request(method="zero_filled")


def test_json_with_a_wrong_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="known are"):
        amend(configure("inr"), '{"parameters": {"config": "../inr"}}')


def test_wishes_go_over_a_configuration_and_leave_the_rest_of_it() -> None:
    text = '<configuration><property name="preset" value="fast"/><property name="seed" value="1"/></configuration>'
    wishes = Wishes(method="bilevel_inr", overrides={"iterations": "7"})
    assert requested(text, wishes) == Request(
        method="bilevel_inr", preset="fast", overrides={"seed": "1", "iterations": "7"}
    )
    assert requested("cg_sense", Wishes()) == configure("cg_sense").request
    assert requested("null", wishes).method == "bilevel_inr"


def test_what_makes_no_images_cannot_be_requested() -> None:
    with pytest.raises(ConfigError, match="'savedataonly' makes no images"):
        requested("savedataonly", Wishes(preset="fast"))


def test_what_a_client_asked_for_is_understood_as_the_server_did() -> None:
    fast, sense = '{"parameters": {"preset": "fast"}}', '{"parameters": {"config": "cg_sense"}}'
    assert recorded("inr", ()) == configure("inr")
    assert recorded("inr", [sense, fast]).request == Request(method="cg_sense", preset="fast")
    assert recorded("no_such", [fast, sense]).request == Request(method="cg_sense")
    for parameters in ((), (fast,)):
        with pytest.raises(ConfigError, match="unknown configuration 'no_such'"):
            recorded("no_such", parameters)
    with pytest.raises(ConfigError, match="well-formed"):
        recorded("inr", ["{"])
