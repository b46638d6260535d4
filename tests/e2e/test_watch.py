"""Metrics and health of a real server: what is counted, and that nothing of a patient is anywhere in what it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from inrecon.simulate import SimulatedScan
from inrecon_server.protocol import Close, ConfigFile, Header, Query, Text

if TYPE_CHECKING:
    from conftest import RunningServer


def test_health_and_readiness_are_told(own_server: RunningServer, scan: SimulatedScan) -> None:
    assert own_server.get("/readyz") == (503, "not ready\n")  # torch takes longer to load than this does
    assert own_server.get("/healthz") == (200, "ok\n")
    assert own_server.get("/nowhere")[0] == 404
    assert own_server.send(scan).images
    assert own_server.get("/readyz") == (200, "ready\n")


def test_scans_are_counted_and_timed(own_server: RunningServer, scan: SimulatedScan) -> None:
    fields = "".join(f'<property name="{n}" value="{v}"/>' for n, v in {"iterations": 4, "levels": 2}.items())
    inr = f'<configuration><property name="method" value="bilevel_inr"/>{fields}</configuration>'
    assert own_server.send(scan).images
    assert own_server.send(scan, config=inr).images
    assert not own_server.send(scan, config="cg_sens").images
    assert own_server.answers(Query("gadgetron::version", 1), Close())
    late = own_server.send(scan, parameters='{"parameters": {"deadline": 1e-6}}')
    assert any("after its deadline" in text for text in late.texts)

    for _ in range(1000):  # the last client heard CLOSE a moment ago
        if not (found := own_server.figures())["inrecon_sessions_active"]:
            break
    assert found["inrecon_sessions_started_total"] == 5
    ended = {labels: count for labels, count in found.items() if labels.startswith("inrecon_sessions_ended_total")}
    assert sum(ended.values()) == 5
    assert ended['inrecon_sessions_ended_total{config="cg_sense",outcome="done"}'] == 2
    assert ended['inrecon_sessions_ended_total{config="XML text",outcome="done"}'] == 1
    assert ended['inrecon_sessions_ended_total{config="none",outcome="failed"}'] == 1
    assert (
        found["inrecon_readouts_received_total"] == 3 * len(scan.acquisitions) + 1
    )  # the first of the scan that was refused
    assert found["inrecon_images_sent_total"] == 3
    assert found["inrecon_frame_latency_seconds_count"] == 3
    assert found["inrecon_deadlines_missed_total"] == 1
    assert found['inrecon_fallbacks_total{room="fit"}'] == 1
    assert found['inrecon_stage_seconds_count{stage="fit"}'] == 3
    assert found['inrecon_fit_iterations_sum{method="bilevel_inr"}'] == 4
    assert sum(count for name, count in found.items() if name.startswith("inrecon_look_ups_total")) == 3
    assert found["inrecon_frames_queued"] == 0


SECRETS = ("Doe^Jane", "PID-4711-XQ", "1970-01-31", "Dr. Mabuse", "ACC-99", "General Hospital")


def test_nothing_of_the_patient_is_in_logs_metrics_texts_or_images(
    own_server: RunningServer, scan: SimulatedScan
) -> None:
    name, number, birth, doctor, accession, hospital = SECRETS
    personal = (
        f"<subjectInformation><patientName>{name}</patientName><patientID>{number}</patientID>"
        f"<patientBirthdate>{birth}</patientBirthdate></subjectInformation>"
        f"<studyInformation><accessionNumber>{accession}</accessionNumber>"
        f"<referringPhysicianName>{doctor}</referringPhysicianName></studyInformation>"
    )
    root = re.search(rb"<ismrmrdHeader[^>]*>", scan.header)
    assert root is not None
    header = scan.header[: root.end()] + personal.encode() + scan.header[root.end() :]
    header = header.replace(
        b"</acquisitionSystemInformation>",
        f"<institutionName>{hospital}</institutionName>".encode() + b"</acquisitionSystemInformation>",
    )
    for config in ("cg_sense", "nonsense"):
        answers = own_server.answers(ConfigFile(config), Header(header), *scan.acquisitions, Close())
        said = "".join(a.text for a in answers if isinstance(a, Text))
        images = [a.attribute_string for a in answers if hasattr(a, "attribute_string")]
        assert len(images) == (config == "cg_sense")
        for text in (said, *images, own_server.get("/metrics")[1], own_server.log()):
            assert not [secret for secret in SECRETS if secret in text]
    broken = own_server.answers(ConfigFile("cg_sense"), Header(header[:-40]), Close())
    assert not [s for s in SECRETS if any(s in a.text for a in broken if isinstance(a, Text))]
    assert not [secret for secret in SECRETS if secret in own_server.log()]
