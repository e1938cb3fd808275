"""The OpenAPI document against the server, by schemathesis: no 5xx, no undocumented answer."""

import contextlib

import pytest

from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.support.fakes import FakeBackend
from tests.support.serving import serving

schemathesis = pytest.importorskip("schemathesis")

OPEN = ApiConfig(limits=LimitsConfig(requests_per_minute=10**6, max_concurrent=10**6))


@pytest.mark.slow
def test_every_answer_is_as_documented():
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as openapi

    wanted = [
        checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_headers_conformance,
        openapi.response_schema_conformance,
        openapi.unsupported_method,
    ]
    with serving({"fake": FakeBackend()}, OPEN) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == 6
        seen: set[int] = set()
        for operation in operations:
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                strategy = operation.as_strategy(generation_mode=mode)

                @settings(
                    max_examples=40, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(case=strategy)
                def answers_as_documented(case):
                    answer = case.call(base_url=url)
                    seen.add(answer.status_code)
                    case.validate_response(answer, checks=wanted)

                with contextlib.suppress(Unsatisfiable):  # a route without input takes no wrong one
                    answers_as_documented()
        assert {200, 400, 404} <= seen
