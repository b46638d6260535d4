"""The question of Gadgetron's client after noise, however it is written."""

import numpy as np
import pytest
from ismrmrd import Meta

from inrecon.frame import Noise
from inrecon_server.noise_query import answer, measurement_asked_for

PREFIX = "GadgetronNoiseCovarianceMatrix_"
GADGET = "<gadget><classname>NoiseSummaryGadget</classname>{}</gadget>"
LEGACY = f"<c>{GADGET.format('<property><name>noise_file</name>{}</property>')}</c>"


@pytest.mark.parametrize(
    ("text", "measurement"),
    [
        (LEGACY.format(f"<value>{PREFIX}1_2_3_4</value>"), "1_2_3_4"),
        (LEGACY.format(f"\n  <value>\n {PREFIX}1_2_3_4 \n</value>\n"), "1_2_3_4"),
        (LEGACY.format("<value>1_2_3_4</value>"), "1_2_3_4"),
        (LEGACY.format(f"<value>{PREFIX}a &amp; b</value>"), "a & b"),
        (LEGACY.format(f"<value>{PREFIX}a & b</value>"), "a & b"),
        (LEGACY.format(f"<value>{PREFIX}</value>"), ""),
        (LEGACY.format("<value/>"), ""),
        ("\ufeff <c><gadget><name>NoiseSummary</name></gadget></c>\0", ""),
        (f'<c a=b><gadget>NoiseSummary<property name="noise_file" value="{PREFIX}7"/></gadget>', "7"),
    ],
)
def test_the_measurement_is_found(text: str, measurement: str) -> None:
    assert measurement_asked_for(text) == measurement


@pytest.mark.parametrize("text", ["NoiseSummary", "", "{NoiseSummary}", LEGACY.replace("NoiseSummary", "FFT"), "<c/>"])
def test_other_configurations_ask_nothing(text: str) -> None:
    assert measurement_asked_for(text) is None


def test_a_long_text_is_searched_in_a_moment() -> None:
    for part in ("noise_file", "noise_file</name><value>", "noise_file   ", " "):
        assert measurement_asked_for("<NoiseSummary " + part * ((1 << 20) // len(part))) is not None


def test_the_answer_is_the_spread_of_the_channels() -> None:
    covariance = np.diag([4.0, 16.0, 1.0]).astype(np.complex128)
    noise = Noise(covariance=covariance, samples=9, sample_time_us=2.5, relative_bandwidth=0.8)
    assert Meta.deserialize(answer(noise).meta) == {
        "status": "success",
        "channels": "3",
        "min_sigma": "1.0",
        "max_sigma": "4.0",
        "mean_sigma": str(np.mean([2.0, 4.0, 1.0])),
        "noise_dwell_time_us": "2.5",
    }
    assert Meta.deserialize(answer(None).meta) == {"status": "failed"}
