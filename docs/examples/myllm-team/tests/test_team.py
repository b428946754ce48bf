"""What the plugin offers is usable, and keeps off what is others'."""

from myllm_team import ENTRIES, myllm_catalog, myllm_routes

from myllm_core.offers import CHECKS


def test_what_it_offers_is_accepted():
    assert list(myllm_catalog()) == list(ENTRIES)
    assert [CHECKS["catalog"](entry) for entry in ENTRIES] == [""]
    assert [CHECKS["routes"](router) for router in myllm_routes()] == [""]


def test_its_routes_lie_below_its_own_prefix():
    [router] = myllm_routes()
    assert [route.path for route in router.routes] == ["/team/models"]
