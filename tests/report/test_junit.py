import math
from xml.etree import ElementTree as ET

import pytest
from results import NO_DEVICE, WEIGHTS_FAIL, check, conversion, edge, verification

from spdexport.report.junit import to_junit
from spdexport.verification.result import Status

SCHEMA = {
    # Of junit-10.xsd of Jenkins' xunit plugin: the attributes of each element, those that must be there marked, and
    # the elements in it.
    "testsuites": ({"name": False, "tests": False, "failures": False, "errors": False}, {"testsuite"}),
    "testsuite": (
        {"name": True, "tests": True, "failures": True, "errors": True, "skipped": False},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "properties": ({}, {"property"}),
    "property": ({"name": True, "value": True}, set()),
    "testcase": (
        {"name": True, "classname": False},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    **{name: ({"type": False, "message": False}, set()) for name in ("skipped", "error", "failure")},
    "system-out": ({}, set()),
}


def check_schema(element):
    attributes, children = SCHEMA[element.tag]
    assert set(element.attrib) <= set(attributes)
    assert {name for name, needed in attributes.items() if needed} <= set(element.attrib)
    for child in element:
        assert child.tag in children
        check_schema(child)


FAILED = verification(
    edge("capture"),
    WEIGHTS_FAIL,
    edge("export", Status.INCONCLUSIVE, provider="cpu", reason="no output reacts to the inputs"),
    NO_DEVICE,
    layers=(check("conv1"), check("conv2", Status.FAIL, weights_ratio=math.inf)),
)


@pytest.mark.parametrize(
    "result", [FAILED, verification(), conversion(), conversion(found=FAILED)], ids=["failed", "pass", "none", "both"]
)
def test_the_common_schema(result):
    root = ET.fromstring(to_junit(result))
    assert root.tag == "testsuites"
    check_schema(root)
    for suite in root:
        cases = suite.findall("testcase")
        assert len({case.get("name") for case in cases}) == len(cases)
        assert int(suite.get("tests")) == len(cases)
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(count)) == len(suite.findall(f"testcase/{tag}"))
    for count in ("tests", "failures", "errors"):
        assert int(root.get(count)) == sum(int(suite.get(count)) for suite in root)


def outcomes(result):
    root = ET.fromstring(to_junit(result))
    return {
        f"{case.get('classname')} {case.get('name')}": next(
            ((x.tag, x.get("message")) for x in case if x.tag != "system-out"), None
        )
        for case in root.iter("testcase")
    }


def test_statuses():
    found = outcomes(FAILED)
    assert found["spdexport.edges capture"] is None
    tag, reason = found["spdexport.edges weights"]
    assert tag == "failure"
    assert reason.startswith("first diverges at conv2")
    assert found["spdexport.edges export (cpu)"] == ("error", "no output reacts to the inputs")
    assert found["spdexport.edges device"] == ("skipped", "no provider beside the CPU was asked for")
    assert found["spdexport.layers conv1"] is None
    assert found["spdexport.layers conv2"][0] == "failure"
    assert "rounding cannot explain" in found["spdexport.layers conv2"][1]


def test_what_to_do_is_told_once():
    assert to_junit(FAILED).count("what to do: ") == 1


def test_without_a_check_nothing_passes():
    assert outcomes(conversion()) == {"spdexport.edges verification": ("skipped", "verification was not asked for")}


def test_no_time_is_invented():
    assert " time=" not in to_junit(FAILED)


@pytest.mark.parametrize("name", ["<script>", 'a"b', "a&b", "]]>", "a\x00b\x1b[31m", "\ud800"])
def test_names_that_nobody_vouches_for(name):
    root = ET.fromstring(to_junit(verification(layers=(check(name),))).encode())
    shown = root.find("testsuite[@name='spdexport.layers']/testcase").get("name")
    assert shown == name.translate({0: "\\x00", 0x1B: "\\x1b", 0xD800: "\\ud800"})
