"""The API does what its OpenAPI description promises, whatever is sent."""

import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from evle.server import Limits, build_app
from evle.server.schemas import EXAMPLE_IMAGE

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

pytestmark = pytest.mark.slow


# Schemas cannot say that an image must be one, that objects exist, or that dimensions are the model's.
UNTESTED = [positive_data_acceptance]
SETTINGS = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_the_description_holds(models):
    schemathesis.openapi.format("byte", st.sampled_from([EXAMPLE_IMAGE, f"data:image/png;base64,{EXAMPLE_IMAGE}"]))
    api = schemathesis.openapi.from_asgi("/openapi.json", build_app(models, limits=Limits(wait_ms=0)))
    operations = [each.ok() for each in api.get_all_operations()]
    assert len(operations) == 15
    for operation in operations:

        @given(case=operation.as_strategy())
        @SETTINGS
        def holds(case):
            case.call_and_validate(excluded_checks=UNTESTED)

        holds()


def test_the_description_is_json(models):
    json.dumps(build_app(models).openapi())
