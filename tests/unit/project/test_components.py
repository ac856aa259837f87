"""The list of components of a release."""

from tools.components import complete


def test_the_version_and_the_packages_of_debian_are_added() -> None:
    document = {"metadata": {"component": {"name": "qmp-agent"}}, "components": [{"name": "aiohttp"}]}
    completed = complete(document, "1.2.3", ["libvirt0 9.0.0-4+deb12u2 amd64", "tzdata 1:2025b all"])
    assert completed["metadata"]["component"] == {"name": "qmp-agent", "version": "1.2.3"}
    assert completed["components"][0] == {"name": "aiohttp"}
    assert [component["purl"] for component in completed["components"][1:]] == [
        "pkg:deb/debian/libvirt0@9.0.0-4%2Bdeb12u2?arch=amd64",
        "pkg:deb/debian/tzdata@1%3A2025b?arch=all",
    ]


def test_a_list_without_packages_of_debian_keeps_its_components() -> None:
    document = {"metadata": {"component": {}}, "components": [{"name": "aiohttp"}]}
    assert complete(document, "1.2.3")["components"] == [{"name": "aiohttp"}]
