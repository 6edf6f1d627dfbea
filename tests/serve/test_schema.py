"""What schemathesis makes of the application's own OpenAPI document: no request fails at the server."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from support.serving import running

from consisid.engine.serve.settings import Limits

NEGATIVE = GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def api(shallow_folder, tmp_path_factory):
    """Videos that schemathesis happens to ask for end after a moment."""
    limits = Limits(seconds=0.5, waiting=4)
    with running(shallow_folder, tmp_path_factory.mktemp("schema") / "data", limits=limits) as found:
        schema = schemathesis.openapi.from_url(f"{found.address}/openapi.json")
        yield schema


PATHS = (
    ("/v1/videos", "POST"), ("/v1/videos", "GET"), ("/v1/videos/{video_id}", "GET"),
    ("/v1/videos/{video_id}", "DELETE"),
    ("/v1/videos/{video_id}/cancel", "POST"), ("/v1/videos/{video_id}/remix", "POST"),
    ("/v1/videos/{video_id}/content", "GET"), ("/v1/videos/{video_id}/events", "GET"),
    ("/v1/videos/characters", "POST"), ("/v1/videos/characters", "GET"),
    ("/v1/videos/characters/{character_id}", "GET"), ("/v1/videos/characters/{character_id}", "DELETE"),
    ("/v1/models", "GET"), ("/v1/models/{name}", "GET"), ("/health", "GET"), ("/metrics", "GET"),
)  # fmt: skip


def test_these_are_all(api):
    found = {(each.ok().path, each.ok().method.upper()) for each in api.get_all_operations()}
    assert found == set(PATHS)


@pytest.mark.parametrize(("path", "method"), PATHS)
def test_no_request_fails_at_the_server(api, path, method):
    """Fields as the document has them, and as it forbids them."""

    @given(case=api[path][method].as_strategy() | api[path][method].as_strategy(generation_mode=NEGATIVE))
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case):
        response = case.call(timeout=30)
        case.validate_response(
            response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
        )

    check()
