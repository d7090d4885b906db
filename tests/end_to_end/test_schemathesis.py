"""Requests that schemathesis makes up from the OpenAPI document: no 5xx, and every error in its form.

Not part of the usual run: NAIAD_SCHEMATHESIS is the path of the `schemathesis` program in an environment of its own.
"""

import os
import subprocess

import pytest
from fake_model import FakeModel, build_state
from live_server import serve

PROGRAM = os.environ.get("NAIAD_SCHEMATHESIS", "")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.mark.skipif(not PROGRAM, reason="NAIAD_SCHEMATHESIS is not set, so schemathesis is missing")
def test_made_up_requests_get_no_5xx_and_errors_in_their_form(model, signing_key, tmp_path):
    state = build_state(model, FakeModel(), signing_key)
    with serve(state) as (host, port):
        address = f"http://{host}:{port}/openapi.json"
        options = ["--checks", ",".join(CHECKS), "--continue-on-failure", "--seed", "1", "--no-shrink"]
        options += ["--max-examples", os.environ.get("NAIAD_SCHEMATHESIS_EXAMPLES", "20")]
        options += ["--suppress-health-check", "all", "--request-timeout", "60"]
        done = subprocess.run(
            [PROGRAM, "run", address, *options], capture_output=True, text=True, timeout=1800, cwd=tmp_path
        )
    assert done.returncode == 0, done.stdout + done.stderr
